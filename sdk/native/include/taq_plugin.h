/* taq_plugin.h: native plugins of taq, C ABI version 1.0.
 *
 * A plugin is a shared library with two symbols: the data TAQ_PLUGIN_STAMP, which says what the file is before any code
 * of it runs, and the function taq_plugin_entry_v1, which says what it offers. docs/abi.md explains everything; this file
 * is all that is needed to compile one:
 *
 *     cc -shared -fPIC -O2 -I sdk/native/include -o libmine.so mine.c
 *     taq plugins check ./libmine.so
 *     taq round --plugin ./libmine.so --rounder mine
 *
 * Rules
 *   Every structure with a `size` begins with its size in bytes, and grows only at its end, with the minor version.
 *   Text is UTF-8 with a length, not terminated.
 *   Tensors are row-major without gaps; `strides` is NULL. Outputs are allocated by the host, and filled by the plugin.
 *   Pointers that a call gets are valid until it returns. What TaqDecl points to must stay valid as long as the process.
 *   A TaqBuf that the plugin fills in is released once by the host, and the other way round.
 *   An instance is used by one thread at a time, not always the same one; several instances are used at the same time.
 *   No exception and no panic may leave a function.
 */
#ifndef TAQ_PLUGIN_H
#define TAQ_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TAQ_ABI_MAJOR 1
#define TAQ_ABI_MINOR 0

/* What a function returns. Other than TAQ_OK, it may say why: see TaqBuf *error. */
enum {
    TAQ_OK = 0,          /* done */
    TAQ_INVALID = 1,     /* the settings, or what was asked, are wrong */
    TAQ_UNSUPPORTED = 2, /* this plugin cannot do that */
    TAQ_PANICKED = 3,    /* the plugin panicked; its instance is not used again */
    TAQ_CANCELLED = 4,   /* stopped because host->cancelled said so */
    TAQ_FAILED = 5       /* anything else went wrong */
};

enum { TAQ_F32 = 1, TAQ_I8 = 2, TAQ_U8 = 3, TAQ_U32 = 4 };                         /* TaqTensor.dtype */
enum { TAQ_OBSERVER = 1, TAQ_ROUNDER = 2, TAQ_POLICY = 3 };                        /* TaqItem.kind */
enum { TAQ_ERROR = 1, TAQ_WARN = 2, TAQ_INFO = 3, TAQ_DEBUG = 4, TAQ_TRACE = 5 };  /* levels of the log */
enum { TAQ_FLAG_UNWIND = 1, TAQ_FLAG_DEBUG = 2 };                                  /* TaqStamp.flags */

/* What the library is. Constant data without pointers, so that it can be read from the file. */
typedef struct TaqStamp {
    uint8_t magic[8]; /* "TAQPLUGN" */
    uint32_t size;
    uint16_t abi_major;
    uint16_t abi_minor;
    uint32_t flags;
    uint32_t reserved;
    char compiler[64]; /* for people, padded with NUL */
    char sdk[32];      /* for people, padded with NUL */
    char target[64];   /* for people, padded with NUL */
} TaqStamp;

/* Borrowed text. */
typedef struct TaqStr {
    const char *ptr;
    size_t len;
} TaqStr;

/* Bytes that belong to whoever filled them in; the reader calls release once, if it is not NULL. */
typedef struct TaqBuf {
    uint8_t *ptr;
    size_t len;
    void (*release)(struct TaqBuf *);
    void *private_data;
} TaqBuf;

/* Numbers to read. */
typedef struct TaqTensor {
    const void *data;
    uint32_t dtype;
    uint32_t ndim;
    const int64_t *shape;
    const int64_t *strides;
} TaqTensor;

/* Room for numbers. */
typedef struct TaqTensorMut {
    void *data;
    uint32_t dtype;
    uint32_t ndim;
    const int64_t *shape;
    const int64_t *strides;
} TaqTensorMut;

/* What a plugin may call, from any thread: as host->log(host->ctx, TAQ_INFO, ...). The table of the entry stays valid. */
typedef struct TaqHostApi {
    uint32_t size;
    uint32_t abi_minor;
    void *ctx;
    void (*log)(void *ctx, uint32_t level, TaqStr target, TaqStr message);
    void (*progress)(void *ctx, uint64_t done, uint64_t total);
    uint32_t (*cancelled)(void *ctx); /* 1: return TAQ_CANCELLED soon */
} TaqHostApi;

/* A linear layer. */
typedef struct TaqLayerInfo {
    uint32_t size;
    uint32_t post_gelu; /* 1: its input comes from a GELU */
    TaqStr id;          /* mm0.img.attn.q_proj */
    TaqStr block;       /* mm0 */
    TaqStr stream;      /* image, text */
    TaqStr role;        /* q, k, v, o, fc1, fc2 */
    uint64_t in_features;
    uint64_t out_features;
} TaqLayerInfo;

/* weight ~ (integer - zero point) * step size, one of each for group_len neighbours of the row-major weight. */
typedef struct TaqGrid {
    uint32_t bits;      /* 2 to 8 */
    uint32_t symmetric; /* 1: every zero point is 0 */
    int32_t qmin;
    int32_t qmax;
    uint64_t group_len;
    uint64_t groups;
} TaqGrid;

/* A layer to be rounded, and the room for its integers. */
typedef struct TaqLayer {
    uint32_t size;
    uint32_t reserved;
    const TaqLayerInfo *info;
    TaqGrid grid;
    TaqTensor weight;                 /* f32 [out_features, in_features] */
    TaqTensor input_bits;             /* u8 [steps]: bits of the input at each planned timestep */
    TaqTensor input_scale;            /* f32 [steps]: its step sizes */
    TaqTensor start_scale;            /* f32 [groups]: where rounding to nearest has the smallest squared error */
    TaqTensor start_zero_point;       /* f32 [groups] */
    TaqTensorMut weight_int;          /* i8 [out_features, in_features], to be written */
    TaqTensorMut scale;               /* f32 [groups], to be written, > 0 */
    TaqTensorMut zero_point;          /* f32 [groups]; 0 unless written */
    TaqTensorMut learned_input_scale; /* f32 [steps]; the plan's unless written */
} TaqLayer;

typedef struct TaqRoundLayerArgs {
    uint32_t size;
    uint32_t reserved;
    uint64_t seed; /* the same seed, the same integers */
    const TaqHostApi *host;
    const TaqLayer *layer;
    TaqTensor inputs;  /* f32 [rows, in_features]: calibration */
    TaqTensor targets; /* f32 [rows, out_features]: what the full-precision weight makes of them, without bias */
    TaqTensor steps;   /* u32 [rows]: the planned timestep of each */
} TaqRoundLayerArgs;

/* What a layer computes with. */
typedef struct TaqLayerValues {
    TaqTensor weight;      /* f32 [out_features, in_features] */
    TaqTensor input_scale; /* f32 [steps]; data NULL: the plan's */
} TaqLayerValues;

/* Derivatives, in the host's memory: valid until the next call of loss_and_gradients. */
typedef struct TaqLayerGradients {
    TaqTensor weight;      /* f32 [out_features, in_features] */
    TaqTensor input_scale; /* f32 [steps]; data NULL: not asked for */
} TaqLayerGradients;

/* Rows to learn from. */
typedef struct TaqBatch {
    const uint64_t *rows;
    size_t n_rows;
    float drop; /* share of elements that full precision takes the place of (QDrop); 0: none */
    uint32_t drop_seed;
    uint32_t input_scales; /* 1: derivatives with respect to step sizes of inputs are wanted too */
    uint32_t reserved;
} TaqBatch;

/* Is shown the input of a layer, f32 [tokens, in_features]. Other than TAQ_OK ends the visit. */
typedef int32_t (*TaqVisit)(void *visitor, size_t layer, const TaqTensor *input);

/* A block's calibration data. Only on the thread that the call came on. Release what comes in *error. */
typedef struct TaqReconstruction {
    uint32_t size;
    uint32_t reserved;
    void *ctx;
    uint64_t rows;         /* rows to learn from: images at timesteps */
    const uint32_t *steps; /* [rows]: the planned timestep of each */
    /* Shows the inputs of all layers for these rows. */
    int32_t (*inputs)(void *ctx, const uint64_t *rows, size_t n_rows, TaqVisit visit, void *visitor, TaqBuf *error);
    /* Mean squared error of the block's output with these values, one of each layer. The host fills in the derivatives,
     * one of each layer. */
    int32_t (*loss_and_gradients)(void *ctx, const TaqLayerValues *layers, size_t n_layers, const TaqBatch *batch,
                                  float *loss, TaqLayerGradients *gradients, TaqBuf *error);
    /* The same error over rows that learning never sees. */
    int32_t (*held_out_loss)(void *ctx, const TaqLayerValues *layers, size_t n_layers, float *loss, TaqBuf *error);
} TaqReconstruction;

typedef struct TaqRoundBlockArgs {
    uint32_t size;
    uint32_t reserved;
    uint64_t seed;
    const TaqHostApi *host;
    TaqStr block;
    const TaqLayer *const *layers; /* in the order of the forward pass */
    size_t n_layers;
    const TaqReconstruction *reconstruction;
} TaqRoundBlockArgs;

/* Makes an instance from settings, a JSON object; wrong ones are TAQ_INVALID. */
typedef int32_t (*TaqCreate)(TaqStr settings, void **instance, TaqBuf *error);
typedef void (*TaqDestroy)(void *instance);

/* Exactly one of round_layer and round_block. */
typedef struct TaqRounderTable {
    uint32_t size;
    uint32_t reserved;
    TaqCreate create;
    int32_t (*round_layer)(void *instance, const TaqRoundLayerArgs *args, TaqBuf *error);
    int32_t (*round_block)(void *instance, const TaqRoundBlockArgs *args, TaqBuf *error);
    TaqDestroy destroy;
} TaqRounderTable;

typedef struct TaqObserveArgs {
    uint32_t size;
    float sigma; /* noise level of the step */
    uint64_t step;
    const TaqHostApi *host;
    const TaqLayerInfo *layer;
    TaqTensor values; /* f32 [tokens, channels] */
    TaqTensor min;    /* f32 [channels]: of this batch */
    TaqTensor max;    /* f32 [channels] */
} TaqObserveArgs;

/* Where the range of all batches goes. */
typedef struct TaqRangeArgs {
    uint32_t size;
    uint32_t reserved;
    TaqTensorMut min; /* f32 [channels] */
    TaqTensorMut max; /* f32 [channels] */
    float *low;
    float *high;
} TaqRangeArgs;

/* An instance sees one layer's input at one timestep. finish is called once, after the last batch. */
typedef struct TaqObserverTable {
    uint32_t size;
    uint32_t reserved;
    TaqCreate create;
    int32_t (*observe)(void *instance, const TaqObserveArgs *args, TaqBuf *error);
    int32_t (*finish)(void *instance, const TaqRangeArgs *args, TaqBuf *error);
    TaqDestroy destroy;
} TaqObserverTable;

typedef struct TaqAssignArgs {
    uint32_t size;
    uint32_t reserved;
    const TaqHostApi *host;
    TaqStr request; /* JSON, taq.policy_request.v1 */
} TaqAssignArgs;

/* *plan is JSON, taq.policy_plan.v1. */
typedef struct TaqPolicyTable {
    uint32_t size;
    uint32_t reserved;
    TaqCreate create;
    int32_t (*assign)(void *instance, const TaqAssignArgs *args, TaqBuf *plan, TaqBuf *error);
    TaqDestroy destroy;
} TaqPolicyTable;

/* One plugin. describe is JSON:
 * {"format": "taq.plugin_info.v1", "summary": "One sentence.", "settings_schema": {"type": "object", ...}} */
typedef struct TaqItem {
    uint32_t kind;
    uint32_t reserved;
    TaqStr name;
    TaqStr describe;
    const void *table; /* TaqRounderTable, TaqObserverTable, TaqPolicyTable */
} TaqItem;

/* What the library offers. */
typedef struct TaqDecl {
    uint32_t size;
    uint32_t reserved;
    TaqStr name;
    TaqStr version;
    const TaqItem *items;
    size_t n_items;
} TaqDecl;

#if defined(_WIN32)
#define TAQ_EXPORT __declspec(dllexport)
#else
#define TAQ_EXPORT __attribute__((visibility("default")))
#endif

/* The two symbols of a library. */
extern TAQ_EXPORT const TaqStamp TAQ_PLUGIN_STAMP;
TAQ_EXPORT const TaqDecl *taq_plugin_entry_v1(const TaqHostApi *host, TaqBuf *error);

/* Conveniences. */

/* Text in quotes as TaqStr, in initialisers. */
#define TAQ_STR(text) { (text), sizeof(text) - 1 }

/* Defines the stamp; once in a library. */
#define TAQ_DEFINE_STAMP                                                                                          \
    const TaqStamp TAQ_PLUGIN_STAMP = {{'T', 'A', 'Q', 'P', 'L', 'U', 'G', 'N'}, sizeof(TaqStamp), TAQ_ABI_MAJOR, \
                                       TAQ_ABI_MINOR, 0, 0, "C", "taq_plugin.h 1.0", ""}

#ifdef __cplusplus
}
#endif

#endif
