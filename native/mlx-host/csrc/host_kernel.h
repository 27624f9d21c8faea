// The C interface between MLX's graph and kernels written in Rust.
// src/ffi.rs declares the same on the Rust side.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"
#include "mlx/c/vector.h"

// A dense row-major tensor. `dtype` is an mlx_dtype.
typedef struct {
  void* data;
  const int32_t* shape;
  size_t rank;
  size_t size;
  int32_t dtype;
} taq_tensor;

// Room for an error text; an empty text means success.
typedef struct {
  char text[512];
} taq_error;

// What a kernel does. None of these may throw or unwind.
typedef struct {
  void (*forward)(const void* kernel, const taq_tensor* inputs, size_t input_count,
                  const taq_tensor* outputs, size_t output_count, taq_error* error);
  // Gradients for the inputs `wanted`, in that order.
  void (*vjp)(const void* kernel, mlx_vector_array primals, mlx_vector_array cotangents,
              mlx_vector_array outputs, const int* wanted, size_t wanted_count,
              mlx_vector_array* gradients, taq_error* error);
  void (*release)(const void* kernel);
} taq_kernel_functions;

#ifdef __cplusplus
extern "C" {
#endif

// Adds a node to the graph and puts its outputs into `result`. Takes over one
// reference to `kernel` and gives it back through `release`, on failure too.
// `shapes` holds the output shapes one after the other. The first `in_place`
// outputs begin with the contents of the inputs of the same places (in their
// memory if nobody else needs it), which the kernel does not see as inputs.
void taq_host_call(const taq_kernel_functions* functions, const void* kernel, const char* name,
                   mlx_vector_array inputs, size_t in_place, const int32_t* shapes,
                   const size_t* ranks, const int32_t* dtypes, size_t output_count, mlx_stream stream,
                   mlx_vector_array* result, taq_error* error);

#ifdef __cplusplus
}
#endif
