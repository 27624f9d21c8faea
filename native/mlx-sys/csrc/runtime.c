// What programs load besides libmlx on Linux: cblas_{s,d,c}gemm, forwarded to the
// OpenBLAS library that lies beside this one, and settings of the C library.
//
// OpenBLAS is opened on first use rather than linked, so that the variables it
// reads when it is loaded can be set before.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define LIBRARY "libscipy_openblas.so"

typedef void (*real_gemm)(int, int, int, int, int, int, float, const float*, int,
                          const float*, int, float, float*, int);
typedef void (*double_gemm)(int, int, int, int, int, int, double, const double*, int,
                            const double*, int, double, double*, int);
typedef void (*complex_gemm)(int, int, int, int, int, int, const void*, const void*, int,
                             const void*, int, const void*, void*, int);

static pthread_once_t once = PTHREAD_ONCE_INIT;
static real_gemm sgemm;
static double_gemm dgemm;
static complex_gemm cgemm;

// Idle OpenBLAS threads spin before they sleep, by default for 2^26 clock
// ticks, and take the cores from other threads meanwhile.
static void shorten_spinning(void) { setenv("OPENBLAS_THREAD_TIMEOUT", "16", 0); }

// MLX allocates every intermediate array with malloc, and glibc takes blocks of
// 32 MiB and more from the system each time and gives them back: the page
// faults then cost several times the arithmetic. Keep them in the heap instead
// (mallopt(3)). Somebody who tunes malloc by variables is left alone.
static void keep_memory(void) {
  static const char* const variables[] = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
                                          "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"};
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
    if (getenv(variables[i])) {
      return;
    }
  }
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

__attribute__((constructor)) static void configure(void) {
  shorten_spinning();
  keep_memory();
}

static void* symbol(void* library, const char* name) {
  void* address = library ? dlsym(library, name) : NULL;
  if (!address) {
    fprintf(stderr, "taq: cannot load %s from OpenBLAS: %s\n", name, dlerror());
    abort();
  }
  return address;
}

static void load(void) {
  char path[PATH_MAX] = LIBRARY;
  Dl_info here;
  if (dladdr((void*)load, &here) && here.dli_fname) {
    const char* slash = strrchr(here.dli_fname, '/');
    if (slash) {
      snprintf(path, sizeof path, "%.*s/%s", (int)(slash - here.dli_fname), here.dli_fname, LIBRARY);
    }
  }
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  sgemm = (real_gemm)symbol(library, "scipy_cblas_sgemm");
  dgemm = (double_gemm)symbol(library, "scipy_cblas_dgemm");
  cgemm = (complex_gemm)symbol(library, "scipy_cblas_cgemm");
}

EXPORT void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha,
                        const float* a, int lda, const float* b, int ldb, float beta, float* c,
                        int ldc) {
  pthread_once(&once, load);
  sgemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_dgemm(int order, int ta, int tb, int m, int n, int k, double alpha,
                        const double* a, int lda, const double* b, int ldb, double beta, double* c,
                        int ldc) {
  pthread_once(&once, load);
  dgemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_cgemm(int order, int ta, int tb, int m, int n, int k, const void* alpha,
                        const void* a, int lda, const void* b, int ldb, const void* beta, void* c,
                        int ldc) {
  pthread_once(&once, load);
  cgemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
