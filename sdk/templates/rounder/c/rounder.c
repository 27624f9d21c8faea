/* A rounder for taq as a native library, in C: coordinate descent on the error of each layer's output.
 *
 * Where a layer's inputs are the rows of X, the error of one output is (w' - w)' G (w' - w), with G = X'X. From the nearest
 * integers, one weight after the other goes to the integer where this error is smallest while all others stay, until
 * none moves: QuantEase (Behdin et al., arXiv 2309.01885). Change `descend` to have a method of your own.
 *
 * ABI version 1: taq_plugin.h, and docs/abi.md in taq's repository. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "taq_plugin.h"

/* How often every weight has its turn, at most. */
#define PASSES 50

/* An instance. */
typedef struct Rounder {
    /* What is added to the diagonal of G, in parts of its mean. Without it weights would go far to make up for each other in
     * calibration's inputs, and miss in others: in what guidance subtracts, above all. */
    float damping;
} Rounder;

/* Says why a call failed: a text that stays where it is, so that there is nothing to release. */
static int32_t fail(TaqBuf *error, int32_t status, const char *text) {
    if (error != NULL) *error = (TaqBuf){(uint8_t *)text, strlen(text), NULL, NULL};
    return status;
}

/* `to += by * from`. */
static void add(float *restrict to, const float *restrict from, float by, size_t length) {
    for (size_t i = 0; i < length; i++) to[i] += by * from[i];
}

/* Settings are a JSON object: {} or {"damping": 1}. Anything longer needs a JSON library. */
static int32_t create(TaqStr settings, void **instance, TaqBuf *error) {
    char text[64] = "";
    float damping = 1;
    int end = -1, length = (int)settings.len;
    if (settings.len >= sizeof text) return fail(error, TAQ_INVALID, "settings: expected {} or {\"damping\": 1}");
    memcpy(text, settings.ptr, settings.len);
    /* %n is how far it came; a space in the format is any white space. */
    if (sscanf(text, " { } %n", &end) != 0 || end != length) {
        end = -1;
        if (sscanf(text, " { \"damping\" : %f } %n", &damping, &end) != 1 || end != length)
            return fail(error, TAQ_INVALID, "settings: expected {} or {\"damping\": 1}");
    }
    if (!(damping >= 0 && isfinite(damping))) return fail(error, TAQ_INVALID, "damping: expected a number from 0 on");
    Rounder *rounder = malloc(sizeof *rounder);
    if (rounder == NULL) return fail(error, TAQ_FAILED, "out of memory");
    rounder->damping = damping;
    *instance = rounder;
    return TAQ_OK;
}

static void destroy(void *instance) { free(instance); }

/* The weight that an integer stands for. */
static float value(const TaqLayer *layer, size_t at) {
    size_t group = at / layer->grid.group_len;
    const int8_t *q = layer->weight_int.data;
    const float *scale = layer->scale.data, *zero = layer->zero_point.data;
    return ((float)q[at] - zero[group]) * scale[group];
}

/* The integer nearest to a weight. */
static int8_t nearest(const TaqLayer *layer, size_t at, float weight) {
    size_t group = at / layer->grid.group_len;
    const float *scale = layer->scale.data, *zero = layer->zero_point.data;
    float q = rintf(weight / scale[group] + zero[group]);
    return (int8_t)fminf(fmaxf(q, (float)layer->grid.qmin), (float)layer->grid.qmax);
}

/* Moves the integers of one output, `width` of them from `first` on, to where no single one can make the error smaller.
 * `slope` is room for half the error's slope, G (w' - w), which is kept up to date. */
static void descend(const TaqLayer *layer, size_t first, size_t width, const float *gram, float *slope) {
    const float *weight = layer->weight.data;
    int8_t *q = layer->weight_int.data;
    memset(slope, 0, width * sizeof *slope);
    for (size_t j = 0; j < width; j++)
        add(slope, gram + j * width, value(layer, first + j) - weight[first + j], width);
    for (int pass = 0, moved = 1; pass < PASSES && moved; pass++) {
        moved = 0;
        for (size_t j = 0; j < width; j++) {
            size_t at = first + j;
            float curvature = gram[j * width + j], now = value(layer, at);
            if (!(curvature > 0)) continue; /* no input ever */
            /* The error is a parabola in this weight: the best integer is the one nearest to its bottom. */
            int8_t best = nearest(layer, at, now - slope[j] / curvature);
            if (best == q[at]) continue;
            q[at] = best;
            add(slope, gram + j * width, value(layer, at) - now, width);
            moved = 1;
        }
    }
}

static int32_t round_layer(void *instance, const TaqRoundLayerArgs *args, TaqBuf *error) {
    const Rounder *rounder = instance;
    if (args->size < sizeof *args) return fail(error, TAQ_INVALID, "the arguments are those of an older ABI");
    const TaqLayer *layer = args->layer;
    const TaqHostApi *host = args->host;
    size_t rows = (size_t)args->inputs.shape[0], width = layer->info->in_features;
    size_t outputs = layer->info->out_features, groups = layer->grid.groups;
    const float *inputs = args->inputs.data, *weight = layer->weight.data;
    int8_t *q = layer->weight_int.data;

    /* Begin with what the host would round to. */
    memcpy(layer->scale.data, layer->start_scale.data, groups * sizeof(float));
    memcpy(layer->zero_point.data, layer->start_zero_point.data, groups * sizeof(float));
    for (size_t i = 0; i < outputs * width; i++) q[i] = nearest(layer, i, weight[i]);

    float *gram = calloc(width * width + width, sizeof *gram), *slope = gram + width * width, mean = 0;
    if (gram == NULL) return fail(error, TAQ_FAILED, "out of memory");
    int32_t status = TAQ_OK;
    for (size_t row = 0; row < rows && status == TAQ_OK; row++) {
        const float *x = inputs + row * width;
        for (size_t j = 0; j < width; j++) add(gram + j * width, x, x[j], width);
        if (row % 64 == 0 && host->cancelled(host->ctx)) status = TAQ_CANCELLED;
    }
    for (size_t j = 0; j < width; j++) mean += gram[j * width + j] / (float)width;
    if (!isfinite(mean)) status = fail(error, TAQ_INVALID, "the layer's inputs are not finite, or too large");
    for (size_t j = 0; j < width; j++) gram[j * width + j] += rounder->damping * mean;
    for (size_t output = 0; output < outputs && status == TAQ_OK; output++) {
        descend(layer, output * width, width, gram, slope);
        host->progress(host->ctx, output + 1, outputs);
        if (host->cancelled(host->ctx)) status = TAQ_CANCELLED; /* Ctrl-C */
    }
    free(gram);
    return status;
}

/* What the library offers. */

static const TaqRounderTable table = {sizeof table, 0, create, round_layer, NULL, destroy};

static const char describe[] =
    "{\"format\": \"taq.plugin_info.v1\","
    " \"summary\": \"Moves one weight after the other to the integer where the layer's output errs least (QuantEase).\","
    " \"settings_schema\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {\"damping\": {"
    "\"description\": \"What is added to the diagonal of G, in parts of its mean.\","
    " \"type\": \"number\", \"minimum\": 0, \"default\": 1}}}}";

static const TaqItem items[] = {
    {TAQ_ROUNDER, 0, TAQ_STR("coordinate-descent"), {describe, sizeof describe - 1}, &table},
};

static const TaqDecl decl = {sizeof decl, 0, TAQ_STR("my-rounder"), TAQ_STR("0.1.0"), items, 1};

const TaqDecl *taq_plugin_entry_v1(const TaqHostApi *host, TaqBuf *error) {
    (void)host, (void)error;
    return &decl;
}

TAQ_DEFINE_STAMP;
