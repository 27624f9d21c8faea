/* The observer's own test: a program that plays the host. It ends with 0 if all is well.
 *
 *     cc -O1 -g -fsanitize=address,undefined -o test test.c observer.c -lm && ./test */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "taq_plugin.h"

#define CHECK(what)                                                    \
    do {                                                               \
        if (!(what)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                                   \
        }                                                              \
    } while (0)

enum { TOKENS = 1000, BATCHES = 100, CHANNELS = 2 };

static void log_line(void *ctx, uint32_t level, TaqStr target, TaqStr line) { (void)ctx, (void)level, (void)target, (void)line; }
static void progress(void *ctx, uint64_t done, uint64_t total) { (void)ctx, (void)done, (void)total; }
static uint32_t cancelled(void *ctx) { (void)ctx; return 0; }
static const TaqHostApi host = {sizeof host, TAQ_ABI_MINOR, NULL, log_line, progress, cancelled};

/* Numbers from 0 to 1, both apart, the same every time. */
static double any(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return ((state >> 8) + 0.5) / 16777216.0;
}

/* A value around 1, distributed as Laplace's law with b = 0.5 says: its quantile at a random place. */
static float laplace(void) {
    double p = any() - 0.5;
    return (float)(1.0 - 0.5 * (p < 0 ? -1.0 : 1.0) * log(1.0 - 2.0 * fabs(p)));
}

int main(void) {
    const int64_t tokens[] = {TOKENS, CHANNELS}, channels[] = {CHANNELS};
    static float values[TOKENS * CHANNELS];
    float min[CHANNELS], max[CHANNELS], low, high;
    TaqBuf error = {NULL, 0, NULL, NULL};
    void *instance = NULL;

    const TaqDecl *decl = taq_plugin_entry_v1(&host, &error);
    CHECK(decl != NULL && decl->n_items == 1 && decl->items[0].kind == TAQ_OBSERVER);
    const TaqObserverTable *table = decl->items[0].table;
    static const char *const wrong[] = {"", "[1]", "{", "{\"reach\": -1}", "{\"reech\": 5}", "{\"reach\": 5}}", "{} x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        TaqStr settings = {wrong[i], strlen(wrong[i])};
        CHECK(table->create(settings, &instance, &error) == TAQ_INVALID && error.len > 0);
    }

    TaqStr settings = TAQ_STR("{ \"reach\": 9.89 }");
    CHECK(table->create(settings, &instance, &error) == TAQ_OK);
    TaqLayerInfo info = {sizeof info, 0, TAQ_STR("b.img.q"), TAQ_STR("b"), TAQ_STR("image"), TAQ_STR("q"), CHANNELS, 1};
    for (int batch = 0; batch < BATCHES; batch++) {
        for (int i = 0; i < TOKENS * CHANNELS; i++) values[i] = laplace();
        /* An outlier in the first channel, once. */
        if (batch == 7) values[0] = 20.0f;
        for (int c = 0; c < CHANNELS; c++) min[c] = INFINITY, max[c] = -INFINITY;
        for (int i = 0; i < TOKENS * CHANNELS; i++) {
            min[i % CHANNELS] = fminf(min[i % CHANNELS], values[i]);
            max[i % CHANNELS] = fmaxf(max[i % CHANNELS], values[i]);
        }
        TaqObserveArgs args = {sizeof args, 0.5f, 3, &host, &info, {values, TAQ_F32, 2, tokens, NULL},
                               {min, TAQ_F32, 1, channels, NULL}, {max, TAQ_F32, 1, channels, NULL}};
        CHECK(table->observe(instance, &args, &error) == TAQ_OK);
    }
    TaqRangeArgs range = {sizeof range, 0, {min, TAQ_F32, 1, channels, NULL}, {max, TAQ_F32, 1, channels, NULL}, &low, &high};
    CHECK(table->finish(instance, &range, &error) == TAQ_OK);
    table->destroy(instance);
    printf("%.3f to %.3f\n", low, high);
    /* The outlier is clipped where the law says. */
    CHECK(fabs(high - (1 + 9.89 * 0.5)) < 0.1 && max[0] == high);
    CHECK(low >= 1 - 9.89 * 0.5 - 0.1 && low < -3 && min[0] >= low && min[1] >= low);
    return 0;
}
