/* The passes that every block makes: stored numbers to floats, the product of two factors, floats to stored numbers.

   Called through ctypes by rounding.py and product.py, which have a twin of each in numpy; the tests hold both
   together. Plain loops without branches, so that the compiler makes vector code of them. */

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define TILE 64 /* elements between two looks at whether one of them is open */

static inline uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* --- from what is stored --- */

static inline float from_BF16(uint16_t h) { return float_of((uint32_t)h << 16); }

static inline float from_F16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, size = h & 0x7FFF;
    uint32_t normal = (size << 13) + (112u << 23), special = (size << 13) | 0x7F800000;
    uint32_t tiny = bits_of((float)(int32_t)size * 0x1p-24f);
    uint32_t value = size < 0x0400 ? tiny : size < 0x7C00 ? normal : special;
    return float_of(sign | value);
}

static inline float from_F32(float x) { return x; }

/* --- to what is stored: to nearest, ties to even --- */

static inline uint32_t to_BF16(float x)
{
    uint32_t u = bits_of(x);
    uint32_t rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
    return (u & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded;
}

static inline uint32_t to_F16(float x)
{
    uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, size = u & 0x7FFFFFFF;
    uint32_t normal = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
    uint32_t tiny = bits_of(float_of(size) + 0.5f) - bits_of(0.5f); /* the sum rounds at 2^-24 */
    uint32_t special = size > 0x7F800000 ? 0x7E00 : 0x7C00;
    return sign | (size < (113u << 23) ? tiny : size < (143u << 23) ? normal : special);
}

static inline uint32_t to_F32(double x) { return bits_of((float)x); }

/* The float beside x whose last bit is 1, where x is no float: it rounds to 16 bits as x itself does. (S. Boldo,
   G. Melquiond, "When double rounding is odd", 2005.) */
static inline float to_odd(double x)
{
    float near = (float)x;
    uint32_t u = bits_of(near);
    double back = near;
    uint32_t step = fabs(back) > fabs(x) ? 0xFFFFFFFF : 1;
    return float_of(back != x && (u & 1) == 0 ? u + step : u);
}

static inline uint32_t once_to_BF16(double x) { return to_BF16(to_odd(x)); }
static inline uint32_t once_to_F16(double x) { return to_F16(to_odd(x)); }
static inline uint32_t twice_to_BF16(double x) { return to_BF16((float)x); }
static inline uint32_t twice_to_F16(double x) { return to_F16((float)x); }

/* out = the stored numbers; returns the bits of the largest magnitude, as a float: those of NaN are above infinity. */
#define WIDEN(NAME, STORED, WIDE, LOAD)                                                                               \
    CLONES uint32_t NAME(const STORED *restrict in, WIDE *restrict out, size_t count)                                 \
    {                                                                                                                 \
        uint32_t largest = 0;                                                                                         \
        for (size_t i = 0; i < count; i++) {                                                                          \
            float x = LOAD(in[i]);                                                                                    \
            uint32_t size = bits_of(x) & 0x7FFFFFFF;                                                                  \
            largest = size > largest ? size : largest;                                                                \
            out[i] = x;                                                                                               \
        }                                                                                                             \
        return largest;                                                                                               \
    }

WIDEN(widen_BF16_f4, uint16_t, float, from_BF16)
WIDEN(widen_BF16_f8, uint16_t, double, from_BF16)
WIDEN(widen_F16_f4, uint16_t, float, from_F16)
WIDEN(widen_F16_f8, uint16_t, double, from_F16)
WIDEN(widen_F32_f4, float, float, from_F32)
WIDEN(widen_F32_f8, float, double, from_F32)

/* out = the rounded x - (error + relative·|x|); open = where rounding x + (the same) gives another value. Returns how
   many are open. `open` has room for all. The ends are rounded once, in functions named twice by way of a float. */
#define ROUND(NAME, WIDE, STORED, ABS, LARGEST, NARROW)                                                               \
    CLONES size_t NAME(const WIDE *restrict in, WIDE error, WIDE relative, STORED *restrict out, size_t count,        \
                       int32_t *restrict open)                                                                        \
    {                                                                                                                 \
        size_t found = 0;                                                                                             \
        for (size_t start = 0; start < count; start += TILE) {                                                        \
            uint32_t differs[TILE], low[TILE], any = 0;                                                               \
            size_t length = count - start < TILE ? count - start : TILE;                                              \
            for (size_t i = 0; i < length; i++) {                                                                     \
                WIDE x = in[start + i], size = ABS(x) < LARGEST ? ABS(x) : LARGEST, reach = error + relative * size;  \
                uint32_t high = NARROW(x + reach);                                                                    \
                low[i] = NARROW(x - reach);                                                                           \
                differs[i] = low[i] ^ high;                                                                           \
                any |= differs[i];                                                                                    \
            }                                                                                                         \
            for (size_t i = 0; i < length; i++)                                                                       \
                out[start + i] = (STORED)low[i];                                                                      \
            if (any)                                                                                                  \
                for (size_t i = 0; i < length; i++)                                                                   \
                    if (differs[i])                                                                                   \
                        open[found++] = (int32_t)(start + i);                                                         \
        }                                                                                                             \
        return found;                                                                                                 \
    }

ROUND(round_f4_BF16, float, uint16_t, fabsf, FLT_MAX, to_BF16)
ROUND(round_f4_F16, float, uint16_t, fabsf, FLT_MAX, to_F16)
ROUND(round_f8_BF16, double, uint16_t, fabs, DBL_MAX, once_to_BF16)
ROUND(round_f8_F16, double, uint16_t, fabs, DBL_MAX, once_to_F16)
ROUND(twice_f8_BF16, double, uint16_t, fabs, DBL_MAX, twice_to_BF16)
ROUND(twice_f8_F16, double, uint16_t, fabs, DBL_MAX, twice_to_F16)
ROUND(round_f8_F32, double, uint32_t, fabs, DBL_MAX, to_F32)

/* rows += left @ right, each product summed by itself before it is added: what lora.py's bound counts on. `rows` has
   `columns` columns, and `stride` elements from one row to the next; rank is at most DEEPEST. */
#define DEEPEST 256
#define HIGH 4  /* rows at once */
#define PARTS 4 /* vectors at once of each row */
#define ADD_PRODUCT(NAME, REAL)                                                                                       \
    typedef REAL NAME##_vector __attribute__((vector_size(64)));                                                      \
    CLONES void NAME(REAL *restrict rows, const REAL *restrict left, const REAL *restrict right, size_t count,        \
                     size_t columns, size_t stride, size_t rank)                                                      \
    {                                                                                                                 \
        enum { WIDE = PARTS * 64 / sizeof(REAL) };                                                                    \
        NAME##_vector panel[DEEPEST][PARTS];                                                                          \
        for (size_t c = 0; c < columns; c += WIDE) {                                                                  \
            size_t wide = columns - c < WIDE ? columns - c : WIDE;                                                    \
            memset(panel, 0, rank * sizeof panel[0]);                                                                 \
            for (size_t k = 0; k < rank; k++)                                                                         \
                memcpy(panel[k], right + k * columns + c, wide * sizeof(REAL));                                       \
            for (size_t r = 0; r < count; r += HIGH) {                                                                \
                size_t high = count - r < HIGH ? count - r : HIGH;                                                    \
                const REAL *own[HIGH];                                                                                \
                NAME##_vector sum[HIGH][PARTS] = {0};                                                                 \
                for (size_t i = 0; i < HIGH; i++)                                                                     \
                    own[i] = left + (r + (i < high ? i : 0)) * rank;                                                  \
                for (size_t k = 0; k < rank; k++)                                                                     \
                    for (size_t i = 0; i < HIGH; i++)                                                                 \
                        for (size_t v = 0; v < PARTS; v++)                                                            \
                            sum[i][v] += own[i][k] * panel[k][v];                                                     \
                for (size_t i = 0; i < high; i++) {                                                                   \
                    REAL *row = rows + (r + i) * stride + c;                                                          \
                    const REAL *add = (const REAL *)sum[i];                                                           \
                    if (wide == WIDE)                                                                                 \
                        for (size_t j = 0; j < WIDE; j++)                                                             \
                            row[j] += add[j];                                                                         \
                    else                                                                                              \
                        for (size_t j = 0; j < wide; j++)                                                             \
                            row[j] += add[j];                                                                         \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }

ADD_PRODUCT(add_product_f4, float)
ADD_PRODUCT(add_product_f8, double)

/* out = the sum of squares of each row of rows + left @ right, in double: of 32 columns, and then of those sums. */
#define SQUARES(NAME, REAL)                                                                                           \
    CLONES void NAME(const REAL *restrict rows, const double *restrict left, const double *restrict right,            \
                     double *restrict out, size_t count, size_t columns, size_t stride, size_t rank)                  \
    {                                                                                                                 \
        enum { WIDE = PARTS * 64 / sizeof(double), LANES = 64 / sizeof(double) };                                     \
        add_product_f8_vector panel[DEEPEST][PARTS];                                                                  \
        memset(out, 0, count * sizeof *out);                                                                          \
        for (size_t c = 0; c < columns; c += WIDE) {                                                                  \
            size_t wide = columns - c < WIDE ? columns - c : WIDE;                                                    \
            memset(panel, 0, rank * sizeof panel[0]);                                                                 \
            for (size_t k = 0; k < rank; k++)                                                                         \
                memcpy(panel[k], right + k * columns + c, wide * sizeof(double));                                     \
            for (size_t r = 0; r < count; r += HIGH) {                                                                \
                size_t high = count - r < HIGH ? count - r : HIGH;                                                    \
                const double *own[HIGH];                                                                              \
                add_product_f8_vector sum[HIGH][PARTS] = {0};                                                         \
                for (size_t i = 0; i < HIGH; i++)                                                                     \
                    own[i] = left + (r + (i < high ? i : 0)) * rank;                                                  \
                for (size_t k = 0; k < rank; k++)                                                                     \
                    for (size_t i = 0; i < HIGH; i++)                                                                 \
                        for (size_t v = 0; v < PARTS; v++)                                                            \
                            sum[i][v] += own[i][k] * panel[k][v];                                                     \
                for (size_t i = 0; i < high; i++) {                                                                   \
                    const REAL *row = rows + (r + i) * stride + c;                                                    \
                    double whole[WIDE] = {0}, lanes[LANES] = {0};                                                     \
                    for (size_t j = 0; j < wide; j++)                                                                 \
                        whole[j] = row[j] + ((const double *)sum[i])[j];                                              \
                    for (size_t j = 0; j < WIDE; j += LANES)                                                          \
                        for (size_t lane = 0; lane < LANES; lane++)                                                   \
                            lanes[lane] += whole[j + lane] * whole[j + lane];                                         \
                    for (size_t half = LANES / 2; half; half /= 2)                                                    \
                        for (size_t lane = 0; lane < half; lane++)                                                    \
                            lanes[lane] += lanes[lane + half];                                                        \
                    out[r + i] += lanes[0];                                                                           \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }

SQUARES(squares_f4, float)
SQUARES(squares_f8, double)

/* Rounding to nearest, and subnormal numbers kept, in the thread that calls: a library may have set it otherwise. */
int standard_arithmetic(void) { return fesetenv(FE_DFL_ENV); }
