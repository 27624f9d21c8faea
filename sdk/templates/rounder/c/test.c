/* The rounder's own test: a program that plays the host. It ends with 0 if all is well.
 *
 *     cc -O1 -g -fsanitize=address,undefined -o test test.c rounder.c -lm && ./test */
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

enum { OUTPUTS = 6, WIDTH = 16, ROWS = 96, QMIN = -4, QMAX = 3 };

static uint32_t stop;
static void log_line(void *ctx, uint32_t level, TaqStr target, TaqStr line) { (void)ctx, (void)level, (void)target, (void)line; }
static void progress(void *ctx, uint64_t done, uint64_t total) { (void)ctx; CHECK(done <= total); }
static uint32_t cancelled(void *ctx) { (void)ctx; return stop; }
static const TaqHostApi host = {sizeof host, TAQ_ABI_MINOR, NULL, log_line, progress, cancelled};

/* Numbers from -1 to 1, the same every time. */
static float any(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static float weight[OUTPUTS * WIDTH], inputs[ROWS * WIDTH], start[OUTPUTS], zero_start[OUTPUTS];
static float scale[OUTPUTS], zero[OUTPUTS];
static int8_t q[OUTPUTS * WIDTH];

/* What is made small, without G: the squares of x (w' - w) over the rows, and the damping's part. */
static double error_of(const int8_t *integers) {
    double error = 0, power = 0;
    for (int i = 0; i < ROWS * WIDTH; i++) power += (double)inputs[i] * inputs[i] / WIDTH;
    for (int output = 0; output < OUTPUTS; output++) {
        double d[WIDTH];
        for (int j = 0; j < WIDTH; j++) {
            int at = output * WIDTH + j;
            d[j] = (double)integers[at] * start[output] - weight[at];
            error += 0.01 * power * d[j] * d[j];
        }
        for (int row = 0; row < ROWS; row++) {
            double y = 0;
            for (int j = 0; j < WIDTH; j++) y += inputs[row * WIDTH + j] * d[j];
            error += y * y;
        }
    }
    return error;
}

int main(void) {
    const int64_t matrix[] = {OUTPUTS, WIDTH}, groups[] = {OUTPUTS}, rows[] = {ROWS, WIDTH}, one[] = {1}, steps[] = {ROWS};
    static uint32_t step[ROWS];
    static float targets[ROWS * OUTPUTS], input_scale = 0.1f, learned = 0.1f;
    static uint8_t bits = 8;
    const int64_t target_rows[] = {ROWS, OUTPUTS};
    TaqBuf error = {NULL, 0, NULL, NULL};
    void *instance = NULL;

    /* Inputs that go together: there nearest is not best. */
    for (int i = 0; i < OUTPUTS * WIDTH; i++) weight[i] = any();
    for (int row = 0; row < ROWS; row++) {
        float a = any(), b = any();
        for (int j = 0; j < WIDTH; j++) inputs[row * WIDTH + j] = (j % 2 ? a : b) + 0.2f * any();
    }
    for (int i = 0; i < OUTPUTS; i++) start[i] = 0.3f;

    const TaqDecl *decl = taq_plugin_entry_v1(&host, &error);
    CHECK(decl != NULL && decl->n_items == 1 && decl->items[0].kind == TAQ_ROUNDER);
    const TaqRounderTable *table = decl->items[0].table;
    static const char *const wrong[] = {"", "[1]", "{", "{\"damping\": -1}", "{\"dumping\": 1}", "{\"damping\": 1}}", "{} x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        TaqStr settings = {wrong[i], strlen(wrong[i])};
        CHECK(table->create(settings, &instance, &error) == TAQ_INVALID && error.len > 0);
    }

    TaqLayerInfo info = {sizeof info, 0, TAQ_STR("b.img.q"), TAQ_STR("b"), TAQ_STR("image"), TAQ_STR("q"), WIDTH, OUTPUTS};
    TaqLayer layer = {sizeof layer, 0, &info, {3, 1, QMIN, QMAX, WIDTH, OUTPUTS},
                      {weight, TAQ_F32, 2, matrix, NULL}, {&bits, TAQ_U8, 1, one, NULL},
                      {&input_scale, TAQ_F32, 1, one, NULL}, {start, TAQ_F32, 1, groups, NULL},
                      {zero_start, TAQ_F32, 1, groups, NULL}, {q, TAQ_I8, 2, matrix, NULL},
                      {scale, TAQ_F32, 1, groups, NULL}, {zero, TAQ_F32, 1, groups, NULL},
                      {&learned, TAQ_F32, 1, one, NULL}};
    TaqRoundLayerArgs args = {sizeof args, 0, 1, &host, &layer, {inputs, TAQ_F32, 2, rows, NULL},
                              {targets, TAQ_F32, 2, target_rows, NULL}, {step, TAQ_U32, 1, steps, NULL}};
    TaqStr settings = TAQ_STR("{ \"damping\": 0.01 }");
    CHECK(table->create(settings, &instance, &error) == TAQ_OK);
    CHECK(table->round_layer(instance, &args, &error) == TAQ_OK);

    /* Better than nearest, and no single integer can be better. */
    int8_t nearest[OUTPUTS * WIDTH], other[OUTPUTS * WIDTH];
    for (int i = 0; i < OUTPUTS * WIDTH; i++) {
        int n = (int)(weight[i] / 0.3f + (weight[i] < 0 ? -0.5f : 0.5f));
        nearest[i] = (int8_t)(n < QMIN ? QMIN : n > QMAX ? QMAX : n);
    }
    double least = error_of(q), of_nearest = error_of(nearest);
    printf("error %.4g, of nearest %.4g\n", least, of_nearest);
    CHECK(least < 0.5 * of_nearest);
    for (int i = 0; i < OUTPUTS * WIDTH; i++) {
        for (int by = -1; by <= 1; by += 2) {
            memcpy(other, q, sizeof q);
            other[i] = (int8_t)(other[i] + by);
            if (other[i] >= QMIN && other[i] <= QMAX) CHECK(error_of(other) > least * (1 - 1e-5));
        }
    }

    stop = 1;
    CHECK(table->round_layer(instance, &args, &error) == TAQ_CANCELLED);
    table->destroy(instance);
    return 0;
}
