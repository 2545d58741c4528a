/* The passes that every block makes: stored numbers to floats, the product of two factors, floats to stored numbers.

   Called through ctypes by rounding.py and product.py beside this, which have a twin of each in numpy; the tests hold
   both together. Plain loops without branches, so that the compiler makes vector code of them. */

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define WIDEST __attribute__((target("arch=x86-64-v4")))
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

/* Whether the functions below are there and this processor has their instructions. On others numpy is as quick. */
int has_products(void)
{
#ifdef WIDEST
    return __builtin_cpu_supports("x86-64-v4");
#else
    return 0;
#endif
}

#ifdef WIDEST

/* left @ right in parts of HIGH rows and PARTS vectors, each element summed by itself; EACH is done with every row of a
   part: sum[i] from column c on, of which `wide` are there. `rows` has `columns` columns, and `stride` elements from one
   row to the next; rank is at most DEEPEST. */
#define DEEPEST 256
#define HIGH 4
#define PARTS 4
typedef float floats __attribute__((vector_size(64)));
typedef double doubles __attribute__((vector_size(64)));
#define PRODUCT(REAL, VECTOR, EACH)                                                                                   \
    enum { WIDE = PARTS * 64 / sizeof(REAL) };                                                                        \
    VECTOR panel[DEEPEST][PARTS];                                                                                     \
    for (size_t c = 0; c < columns; c += WIDE) {                                                                      \
        size_t wide = columns - c < WIDE ? columns - c : WIDE;                                                        \
        memset(panel, 0, rank * sizeof panel[0]);                                                                     \
        for (size_t k = 0; k < rank; k++)                                                                             \
            memcpy(panel[k], right + k * columns + c, wide * sizeof(REAL));                                           \
        for (size_t r = 0; r < count; r += HIGH) {                                                                    \
            size_t high = count - r < HIGH ? count - r : HIGH;                                                        \
            const REAL *own[HIGH];                                                                                    \
            VECTOR sum[HIGH][PARTS] = {0};                                                                            \
            for (size_t i = 0; i < HIGH; i++)                                                                         \
                own[i] = left + (r + (i < high ? i : 0)) * rank;                                                      \
            for (size_t k = 0; k < rank; k++)                                                                         \
                for (size_t i = 0; i < HIGH; i++)                                                                     \
                    for (size_t v = 0; v < PARTS; v++)                                                                \
                        sum[i][v] += own[i][k] * panel[k][v];                                                         \
            for (size_t i = 0; i < high; i++) {                                                                       \
                EACH                                                                                                  \
            }                                                                                                         \
        }                                                                                                             \
    }

/* rows += left @ right: each element of the product is added once, which kinds/lora.py's bound counts on. */
#define ADD_PRODUCT(NAME, REAL, VECTOR)                                                                               \
    WIDEST void NAME(REAL *restrict rows, const REAL *restrict left, const REAL *restrict right, size_t count,        \
                     size_t columns, size_t stride, size_t rank)                                                      \
    {                                                                                                                 \
        PRODUCT(REAL, VECTOR, {                                                                                       \
            REAL *row = rows + (r + i) * stride + c;                                                                  \
            const REAL *add = (const REAL *)sum[i];                                                                   \
            if (wide == WIDE)                                                                                         \
                for (size_t j = 0; j < WIDE; j++)                                                                     \
                    row[j] += add[j];                                                                                 \
            else                                                                                                      \
                for (size_t j = 0; j < wide; j++)                                                                     \
                    row[j] += add[j];                                                                                 \
        })                                                                                                            \
    }

ADD_PRODUCT(add_product_f4, float, floats)
ADD_PRODUCT(add_product_f8, double, doubles)

/* out = 8 sums for each row of rows + left @ right, in double, which together are its sum of squares: each of the
   squares in every eighth column, four of them first added up. */
#define LANES 8
#define SQUARES(NAME, REAL)                                                                                           \
    typedef REAL NAME##_part __attribute__((vector_size(LANES * sizeof(REAL))));                                      \
    WIDEST void NAME(const REAL *restrict rows, const double *restrict left, const double *restrict right,            \
                     double *restrict out, size_t count, size_t columns, size_t stride, size_t rank)                  \
    {                                                                                                                 \
        memset(out, 0, count * LANES * sizeof *out);                                                                  \
        PRODUCT(double, doubles, {                                                                                    \
            const REAL *row = rows + (r + i) * stride + c;                                                            \
            NAME##_part parts[PARTS] = {0};                                                                           \
            doubles squares = {0};                                                                                    \
            doubles lanes;                                                                                            \
            if (wide == WIDE)                                                                                         \
                memcpy(parts, row, sizeof parts);                                                                     \
            else                                                                                                      \
                memcpy(parts, row, wide * sizeof(REAL));                                                              \
            for (size_t v = 0; v < PARTS; v++) {                                                                      \
                doubles whole = sum[i][v] + __builtin_convertvector(parts[v], doubles);                               \
                squares += whole * whole;                                                                             \
            }                                                                                                         \
            memcpy(&lanes, out + (r + i) * LANES, sizeof lanes);                                                      \
            lanes += squares;                                                                                         \
            memcpy(out + (r + i) * LANES, &lanes, sizeof lanes);                                                      \
        })                                                                                                            \
    }

SQUARES(squares_f4, float)
SQUARES(squares_f8, double)

#endif

/* Rounding to nearest, and subnormal numbers kept, in the thread that calls: a library may have set it otherwise. */
int standard_arithmetic(void) { return fesetenv(FE_DFL_ENV); }
