/* The level of instructions that this is compiled for: LEVEL is its name, and each function that Python calls has it at
   its end, so that a library holds all levels side by side and compiled.py chooses. */

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define GLUED_(name, level) name##_##level
#define GLUED(name, level) GLUED_(name, level)
#define LEVELLED(name) GLUED(name, LEVEL)

#if defined(__AVX512F__)
#define VECTOR 64 /* bytes of a vector */
#elif defined(__AVX2__)
#define VECTOR 32
#else
#define VECTOR 16
#endif

enum { FLOATS = VECTOR / 4, DOUBLES = VECTOR / 8 };

/* Vectors as they are computed with, and as they lie in memory, where they may begin anywhere: memcpy of one would go
   through the stack. */
typedef float floats __attribute__((vector_size(VECTOR)));
typedef double doubles __attribute__((vector_size(VECTOR)));
typedef float loose_floats __attribute__((vector_size(VECTOR), aligned(4), may_alias));
typedef double loose_doubles __attribute__((vector_size(VECTOR), aligned(8), may_alias));

/* a·b + c, rounded once where the level has an instruction for it, else twice: for sums whose bound counts on two. */
static inline floats add_times_floats(floats a, floats b, floats c)
{
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(__AVX2__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

static inline doubles add_times_doubles(doubles a, doubles b, doubles c)
{
#if defined(__AVX512F__)
    return (doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && defined(__AVX2__)
    return (doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
    return (doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}
