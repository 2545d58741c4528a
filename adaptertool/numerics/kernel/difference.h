/* The difference of two rows of floats, and what is asked of it: difference.py has the twin. */

#define SUMS 16 /* sums of squares, whatever the length of a vector: so that all levels round alike */

/* out = one − other, in float; squares[i % SUMS] += out[i]², in double, in which each square is exact, and rounded[...]
   the same where an element is no float: one of the two sums below is exact (T. Dekker, 1971), whichever number is the
   larger. Returns the bits of the largest magnitude. */
uint32_t LEVELLED(subtract)(const float *restrict one, const float *restrict other, float *restrict out,
                            double *restrict squares, double *restrict rounded, size_t count)
{
    uint32_t largest = 0;
    double all[SUMS], some[SUMS];
    memcpy(all, squares, sizeof all);
    memcpy(some, rounded, sizeof some);
    for (size_t i = 0; i < count; i += SUMS) {
        size_t last = count - i < SUMS ? count - i : SUMS;
#define EACH_OF(last)                                                                                                 \
    for (size_t j = 0; j < last; j++) {                                                                               \
        float d = one[i + j] - other[i + j];                                                                          \
        uint32_t size = bits_of(d) & 0x7FFFFFFF;                                                                      \
        uint32_t inexact = (one[i + j] - d != other[i + j]) | (d + other[i + j] != one[i + j]);                       \
        double lost = float_of(bits_of(d) & (0 - inexact));                                                           \
        largest = size > largest ? size : largest;                                                                    \
        out[i + j] = d;                                                                                               \
        all[j] += (double)d * d;                                                                                      \
        some[j] += lost * lost;                                                                                       \
    }
        if (last == SUMS)
            EACH_OF(SUMS)
        else
            EACH_OF(last)
    }
    memcpy(squares, all, sizeof all);
    memcpy(rounded, some, sizeof some);
    return largest;
}
