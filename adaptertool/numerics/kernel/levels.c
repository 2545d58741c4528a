/* What this processor can do, and how its arithmetic is set. Compiled once. */

#include <fenv.h>

/* The number of the highest level that this processor has: 0 baseline, 1 v3 (AVX2, FMA), 2 v4 (AVX-512). */
int highest_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
        return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return 1;
    return 2;
#else
    return 0;
#endif
}

/* Rounding to nearest, and subnormal numbers kept, in the thread that calls: a library may have set it otherwise. */
int standard_arithmetic(void) { return fesetenv(FE_DFL_ENV); }

/* The checksum of what this was compiled from: with other sources beside it, it is not to be used. */
unsigned sources(void) { return SOURCES; }
