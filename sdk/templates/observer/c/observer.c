/* An observer for taq as a native library, in C: the range that clips best if values are distributed as Laplace's law says.
 *
 * A wide range clips little and has coarse steps. For values around m with density exp(-|x - m| / b) / 2b, the squared error
 * of rounding and clipping together is smallest at m - 9.89 b and m + 9.89 b on a grid of eight bits: ACIQ (Banner et al.,
 * arXiv 1810.05723, table 1). b is estimated from the variance, which is 2 b^2. Change `finish` to have a method of your own.
 *
 * ABI version 1: taq_plugin.h, and docs/abi.md in taq's repository. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "taq_plugin.h"

/* An instance: what was seen of one layer's input at one timestep. */
typedef struct Observer {
    double reach; /* how far the range goes from the mean, in units of b */
    double count, sum, squares;
    size_t channels; /* 0: nothing yet */
    float *min, *max;
} Observer;

/* Says why a call failed: a text that stays where it is, so that there is nothing to release. */
static int32_t fail(TaqBuf *error, int32_t status, const char *text) {
    if (error != NULL) *error = (TaqBuf){(uint8_t *)text, strlen(text), NULL, NULL};
    return status;
}

/* Settings are a JSON object: {} or {"reach": 9.89}. Anything longer needs a JSON library. */
static int32_t create(TaqStr settings, void **instance, TaqBuf *error) {
    char text[64] = "";
    double reach = 9.89;
    int end = -1, length = (int)settings.len;
    if (settings.len >= sizeof text) return fail(error, TAQ_INVALID, "settings: expected {} or {\"reach\": 9.89}");
    memcpy(text, settings.ptr, settings.len);
    /* %n is how far it came; a space in the format is any white space. */
    if (sscanf(text, " { } %n", &end) != 0 || end != length) {
        end = -1;
        if (sscanf(text, " { \"reach\" : %lf } %n", &reach, &end) != 1 || end != length)
            return fail(error, TAQ_INVALID, "settings: expected {} or {\"reach\": 9.89}");
    }
    if (!(reach > 0 && isfinite(reach))) return fail(error, TAQ_INVALID, "reach: expected a number above 0");
    Observer *seen = calloc(1, sizeof *seen);
    if (seen == NULL) return fail(error, TAQ_FAILED, "out of memory");
    seen->reach = reach;
    *instance = seen;
    return TAQ_OK;
}

static void destroy(void *instance) {
    Observer *seen = instance;
    if (seen == NULL) return;
    free(seen->min);
    free(seen->max);
    free(seen);
}

static int32_t observe(void *instance, const TaqObserveArgs *args, TaqBuf *error) {
    Observer *seen = instance;
    if (args->size < sizeof *args) return fail(error, TAQ_INVALID, "the arguments are those of an older ABI");
    size_t channels = (size_t)args->values.shape[1], count = (size_t)args->values.shape[0] * channels;
    const float *values = args->values.data, *min = args->min.data, *max = args->max.data;
    if (seen->channels == 0) {
        seen->min = malloc(channels * sizeof(float));
        seen->max = malloc(channels * sizeof(float));
        if (seen->min == NULL || seen->max == NULL) return fail(error, TAQ_FAILED, "out of memory");
        memcpy(seen->min, min, channels * sizeof(float));
        memcpy(seen->max, max, channels * sizeof(float));
        seen->channels = channels;
    }
    for (size_t c = 0; c < channels; c++) {
        seen->min[c] = fminf(seen->min[c], min[c]);
        seen->max[c] = fmaxf(seen->max[c], max[c]);
    }
    for (size_t i = 0; i < count; i++) {
        seen->sum += values[i];
        seen->squares += (double)values[i] * values[i];
    }
    seen->count += (double)count;
    return TAQ_OK;
}

static float between(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

static int32_t finish(void *instance, const TaqRangeArgs *args, TaqBuf *error) {
    const Observer *seen = instance;
    if (seen->channels == 0) return fail(error, TAQ_INVALID, "nothing was observed");
    float *min = args->min.data, *max = args->max.data, smallest = seen->min[0], largest = seen->max[0];
    for (size_t c = 0; c < seen->channels; c++) {
        smallest = fminf(smallest, seen->min[c]);
        largest = fmaxf(largest, seen->max[c]);
    }
    double mean = seen->sum / seen->count, b = sqrt(fmax(seen->squares / seen->count - mean * mean, 0) / 2);
    /* Where nothing lies, no step is spent. */
    float low = between((float)(mean - seen->reach * b), smallest, largest);
    float high = between((float)(mean + seen->reach * b), low, largest);
    for (size_t c = 0; c < seen->channels; c++) {
        min[c] = between(seen->min[c], low, high);
        max[c] = between(seen->max[c], low, high);
    }
    *args->low = low;
    *args->high = high;
    return TAQ_OK;
}

/* What the library offers. */

static const TaqObserverTable table = {sizeof table, 0, create, observe, finish, destroy};

static const char describe[] =
    "{\"format\": \"taq.plugin_info.v1\","
    " \"summary\": \"The range that clips best if values are distributed as Laplace's law says (ACIQ).\","
    " \"settings_schema\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {\"reach\": {"
    "\"description\": \"How far the range goes from the mean, in units of b: 9.89 for eight bits, 5.03 for four.\","
    " \"type\": \"number\", \"exclusiveMinimum\": 0, \"default\": 9.89}}}}";

static const TaqItem items[] = {
    {TAQ_OBSERVER, 0, TAQ_STR("laplace-clip"), {describe, sizeof describe - 1}, &table},
};

static const TaqDecl decl = {sizeof decl, 0, TAQ_STR("my-observer"), TAQ_STR("0.1.0"), items, 1};

const TaqDecl *taq_plugin_entry_v1(const TaqHostApi *host, TaqBuf *error) {
    (void)host, (void)error;
    return &decl;
}

TAQ_DEFINE_STAMP;
