/* Codes with scales as numbers, in float64 or rounded once: decoding.py, which has a twin in numpy.

   W = (table[code] - zero)·scale / divisor, where a scale, and a zero, go with `size` columns of a row; `which` says
   whose row of them a row has. Codes are bytes, or halves of such: table has a number, or two, for each byte. */

#define SPAN 64 /* elements between two looks at their scale */
#define WORTH 2048 /* elements of one scale, from which on what each byte becomes is rounded first, and looked up */

/* values[0..count) = table of the bytes, `each` numbers of a byte. */
static inline __attribute__((always_inline)) void look_up(const uint8_t *codes, const double *table, double *values,
                                                          size_t count, size_t each)
{
    if (each == 1)
        for (size_t i = 0; i < count; i++)
            values[i] = table[codes[i]];
    else
        for (size_t i = 0; i < count / 2; i++) {
            values[2 * i] = table[2 * codes[i]];
            values[2 * i + 1] = table[2 * codes[i] + 1];
        }
}

#define DECODE(NAME, STORED, NARROW)                                                                                  \
    /* out[0..count) = numbers of one scale; count is even where a byte has two codes */                              \
    static inline void NAME##_some(const uint8_t *codes, const double *table, size_t each, double zero, double scale, \
                                   double divisor, STORED *restrict out, size_t count)                                \
    {                                                                                                                 \
        for (size_t start = 0; start < count; start += SPAN) {                                                     \
            double values[SPAN] = {0};                                                                                   \
            size_t length = count - start < SPAN ? count - start : SPAN;                                        \
            look_up(codes + start / each, table, values, length, each);                                               \
            if (divisor == 1)                                                                                         \
                for (size_t i = 0; i < length; i++)                                                                   \
                    out[start + i] = (STORED)NARROW((values[i] - zero) * scale);                                      \
            else                                                                                                      \
                for (size_t i = 0; i < length; i++)                                                                   \
                    out[start + i] = (STORED)NARROW((values[i] - zero) * scale / divisor);                            \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    void LEVELLED(NAME)(const uint8_t *restrict codes, const double *restrict table, size_t each,                     \
                        const int32_t *restrict which, const double *restrict scales, const double *restrict zeros,   \
                        double divisor, STORED *restrict out, size_t rows, size_t columns, size_t size)               \
    {                                                                                                                 \
        size_t groups = (columns + size - 1) / size, alike;                                                           \
        for (size_t row = 0; row < rows; row += alike) {                                                              \
            for (alike = 1; row + alike < rows && which[row + alike] == which[row];)                                  \
                alike++;                                                                                              \
            for (size_t group = 0; group < groups; group++) {                                                         \
                size_t place = which[row] * groups + group, begin = group * size;                                     \
                size_t count = columns - begin < size ? columns - begin : size;                                       \
                double scale = scales[place], zero = zeros ? zeros[place] : 0;                                        \
                STORED made[256];                                                                                     \
                int known = each == 1 && alike * count >= WORTH;                                                      \
                if (known) {                                                                                          \
                    for (size_t i = 0; i < 256; i++)                                                                  \
                        made[i] = (STORED)NARROW((table[i] - zero) * scale / divisor);                                \
                }                                                                                                     \
                for (size_t r = row; r < row + alike; r++) {                                                          \
                    const uint8_t *own = codes + (r * columns + begin) / each;                                        \
                    STORED *to = out + r * columns + begin;                                                           \
                    if (known)                                                                                        \
                        for (size_t i = 0; i < count; i++)                                                            \
                            to[i] = made[own[i]];                                                                     \
                    else                                                                                              \
                        NAME##_some(own, table, each, zero, scale, divisor, to, count);                               \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }

#define AS_IT_IS(x) (x)
DECODE(decode_F64, double, AS_IT_IS)
DECODE(decode_BF16, uint16_t, once_to_BF16)
DECODE(decode_F16, uint16_t, once_to_F16)
DECODE(decode_F32, uint32_t, to_F32)
