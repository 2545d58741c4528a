/* Stored numbers to floats, and floats to stored numbers: rounding.py has a twin of each function in numpy. Plain loops
   without branches, so that the compiler makes vector code of them. */

#define LOOK 64 /* elements between two looks at whether one of them is open */

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
    uint32_t LEVELLED(NAME)(const STORED *restrict in, WIDE *restrict out, size_t count)                              \
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
    size_t LEVELLED(NAME)(const WIDE *restrict in, WIDE error, WIDE relative, STORED *restrict out, size_t count,     \
                       int32_t *restrict open)                                                                        \
    {                                                                                                                 \
        size_t found = 0;                                                                                             \
        for (size_t start = 0; start < count; start += LOOK) {                                                        \
            uint32_t differs[LOOK], low[LOOK], any = 0;                                                               \
            size_t length = count - start < LOOK ? count - start : LOOK;                                              \
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
