/* Counts and sums over arrays of numbers, in one pass: statistics.py has a twin of each function in numpy, which gives
   the same bits. So that no sum depends on the level, element i of a stretch is added to sum i % ABREAST, in order; the
   sums of stretches are added in order, and those abreast of each other last, in halves. */

#define ABREAST 16
#define STRETCH 2048 /* elements: so few that 16 bits count them */

static inline double from_F64(double x) { return x; }

static inline double in_halves(double *sums)
{
    for (size_t half = ABREAST / 2; half; half /= 2)
        for (size_t j = 0; j < half; j++)
            sums[j] += sums[j + half];
    return sums[0];
}

static inline double largest_of(const double *numbers)
{
    double largest = 0;
    for (size_t j = 0; j < ABREAST; j++)
        largest = numbers[j] > largest ? numbers[j] : largest;
    return largest;
}

/* How two arrays of stored numbers, A and B, differ.
   counts: elements whose bits differ; of these, those where A or B is not finite, and those where B alone is not; and
           the largest distance of finite numbers, in representable ones
   sums:   those of (B − A)² and of A², and the largest |B − A|, without what is not finite */
#define COMPARE(DTYPE, WORD, SIGNED, STORED, LOAD, INFINITE)                                                          \
    static inline double number_##DTYPE(const WORD *word)                                                             \
    {                                                                                                                 \
        STORED stored;                                                                                                \
        memcpy(&stored, word, sizeof stored);                                                                         \
        return LOAD(stored);                                                                                          \
    }                                                                                                                 \
                                                                                                                      \
    static inline void energy_in_##DTYPE(const WORD *restrict a, size_t length, double *restrict sizes)               \
    {                                                                                                                 \
        double size[ABREAST] = {0};                                                                                   \
        for (size_t i = 0; i < length; i += ABREAST)                                                                  \
            for (size_t j = 0; j < ABREAST; j++) {                                                                    \
                double x = number_##DTYPE(a + i + j);                                                                 \
                size[j] += x * x;                                                                                     \
            }                                                                                                         \
        for (size_t j = 0; j < ABREAST; j++)                                                                          \
            sizes[j] += size[j];                                                                                      \
    }                                                                                                                 \
                                                                                                                      \
    static inline void apart_in_##DTYPE(const WORD *restrict a, const WORD *restrict b, size_t length,                \
                                        double *restrict squares, double *restrict sizes, double *restrict largest)   \
    {                                                                                                                 \
        double square[ABREAST] = {0}, size[ABREAST] = {0};                                                            \
        for (size_t i = 0; i < length; i += ABREAST)                                                                  \
            for (size_t j = 0; j < ABREAST; j++) {                                                                    \
                double x = number_##DTYPE(a + i + j), off = number_##DTYPE(b + i + j) - x, far = fabs(off);           \
                square[j] += off * off;                                                                               \
                size[j] += x * x;                                                                                     \
                largest[j] = far > largest[j] ? far : largest[j];                                                     \
            }                                                                                                         \
        for (size_t j = 0; j < ABREAST; j++) {                                                                        \
            squares[j] += square[j];                                                                                  \
            sizes[j] += size[j];                                                                                      \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    void LEVELLED(compare_##DTYPE)(const WORD *restrict a, const WORD *restrict b, size_t count,                      \
                                   uint64_t *restrict counts, double *restrict sums)                                  \
    {                                                                                                                 \
        const WORD unsigned_ = (WORD)~((WORD)1 << (8 * sizeof(WORD) - 1));                                            \
        double squares[ABREAST] = {0}, sizes[ABREAST] = {0}, largest[ABREAST] = {0};                                  \
        WORD distance = 0, one[STRETCH], other[STRETCH];                                                              \
        memset(counts, 0, 4 * sizeof *counts);                                                                        \
        for (size_t start = 0; start < count; start += STRETCH) {                                                     \
            const WORD *p = a + start, *q = b + start;                                                                \
            size_t length = count - start < STRETCH ? count - start : STRETCH;                                        \
            WORD differ = 0, most = 0;                                                                                \
            for (size_t i = 0; i < length; i++) {                                                                     \
                WORD x = p[i] & unsigned_, y = q[i] & unsigned_, larger = x > y ? x : y;                              \
                most = larger > most ? larger : most;                                                                 \
                differ += p[i] != q[i];                                                                               \
            }                                                                                                         \
            counts[0] += differ;                                                                                      \
            if (most >= INFINITE || length % ABREAST) { /* zeros in the place of what does not count */               \
                size_t whole = (length + ABREAST - 1) / ABREAST * ABREAST;                                            \
                for (size_t i = 0; i < whole; i++) {                                                                  \
                    WORD x = i < length ? p[i] : 0, y = i < length ? q[i] : 0;                                        \
                    int known = (x & unsigned_) < INFINITE, both = known && (y & unsigned_) < INFINITE;               \
                    counts[1] += x != y && !both;                                                                     \
                    counts[2] += known && !both;                                                                      \
                    one[i] = known ? x : 0;                                                                           \
                    other[i] = both ? y : one[i];                                                                     \
                }                                                                                                     \
                p = one;                                                                                              \
                q = other;                                                                                            \
                length = whole;                                                                                       \
            }                                                                                                         \
            if (!differ) {                                                                                            \
                energy_in_##DTYPE(p, length, sizes);                                                                  \
                continue;                                                                                             \
            }                                                                                                         \
            for (size_t i = 0; i < length; i++) {                                                                     \
                WORD x = p[i] & unsigned_, y = q[i] & unsigned_;                                                      \
                SIGNED here = (SIGNED)(p[i] == x ? x : -x), there = (SIGNED)(q[i] == y ? y : -y);                     \
                WORD apart = here > there ? (WORD)here - (WORD)there : (WORD)there - (WORD)here;                      \
                distance = apart > distance ? apart : distance;                                                       \
            }                                                                                                         \
            apart_in_##DTYPE(p, q, length, squares, sizes, largest);                                                  \
        }                                                                                                             \
        counts[3] = distance;                                                                                         \
        sums[0] = in_halves(squares);                                                                                 \
        sums[1] = in_halves(sizes);                                                                                   \
        sums[2] = largest_of(largest);                                                                                \
    }                                                                                                                 \
                                                                                                                      \
    /* The sum of squares of stored numbers. */                                                                       \
    double LEVELLED(energy_##DTYPE)(const WORD *restrict a, size_t count)                                             \
    {                                                                                                                 \
        double sizes[ABREAST] = {0};                                                                                  \
        for (size_t start = 0; start < count; start += STRETCH) {                                                     \
            size_t length = count - start < STRETCH ? count - start : STRETCH;                                        \
            WORD rest[STRETCH] = {0};                                                                                 \
            if (length < STRETCH)                                                                                     \
                memcpy(rest, a + start, length * sizeof *a);                                                          \
            energy_in_##DTYPE(length < STRETCH ? rest : a + start, STRETCH, sizes);                                   \
        }                                                                                                             \
        return in_halves(sizes);                                                                                      \
    }

COMPARE(BF16, uint16_t, int16_t, uint16_t, from_BF16, 0x7F80)
COMPARE(F16, uint16_t, int16_t, uint16_t, from_F16, 0x7C00)
COMPARE(F32, uint32_t, int32_t, float, from_F32, 0x7F800000)
COMPARE(F64, uint64_t, int64_t, double, from_F64, 0x7FF0000000000000)

/* How many words differ. */
#define DIFFERING(BITS)                                                                                               \
    size_t LEVELLED(differing_##BITS)(const uint##BITS##_t *restrict a, const uint##BITS##_t *restrict b,             \
                                      size_t count)                                                                   \
    {                                                                                                                 \
        size_t found = 0;                                                                                             \
        for (size_t start = 0; start < count; start += STRETCH) {                                                     \
            size_t length = count - start < STRETCH ? count - start : STRETCH;                                        \
            uint##BITS##_t differ = 0;                                                                                \
            for (size_t i = 0; i < length; i++)                                                                       \
                differ += a[start + i] != b[start + i];                                                               \
            found += differ;                                                                                          \
        }                                                                                                             \
        return found;                                                                                                 \
    }

DIFFERING(16)
DIFFERING(32)
DIFFERING(64)

static inline uint64_t word_of(double x) { uint64_t u; memcpy(&u, &x, 8); return u; }

/* The power of two at or below |x|, or the least one that is given; of NaN and infinity that of C's frexp. */
static inline double power_of(double x, double least)
{
    double size = fabs(x);
    size = size < least ? least : size;
    uint64_t power = word_of(size) & 0x7FF0000000000000;
    uint64_t u = power == 0x7FF0000000000000 ? 0x3FE0000000000000 : power;
    memcpy(&size, &u, 8);
    return size;
}

/* What numbers E should be, W before and S as they are stored, with Δ = E − W.
   counts: elements where Δ is not 0, and those of them where S = W
   sums:   W², E², E² where Δ is not 0, Δ², (S − E)², (S − W)·Δ; and the largest of |S − E| in powers of two at or below
           |E|, none of which is below `least` */
void LEVELLED(drifted)(const double *restrict before, const double *restrict exact, const double *restrict stored,
                       size_t count, double least, uint64_t *restrict counts, double *restrict sums)
{
    enum { SUMS = 6 };
    double totals[SUMS][ABREAST] = {0}, most[ABREAST] = {0}, rest[3][ABREAST] = {0};
    uint64_t touched[ABREAST] = {0}, same[ABREAST] = {0};
    for (size_t start = 0; start < count; start += STRETCH) {
        size_t end = count - start < STRETCH ? count : start + STRETCH;
        double sum[SUMS][ABREAST] = {0};
        for (size_t i = start; i < end; i += ABREAST) {
            const double *b = before + i, *e = exact + i, *s = stored + i;
            if (count - i < ABREAST) {
                memcpy(rest[0], b, (count - i) * sizeof *b);
                memcpy(rest[1], e, (count - i) * sizeof *e);
                memcpy(rest[2], s, (count - i) * sizeof *s);
                b = rest[0];
                e = rest[1];
                s = rest[2];
            }
            for (size_t j = 0; j < ABREAST; j++) {
                double w = b[j], x = e[j], delta = x - w, off = s[j] - x, moved = s[j] - w, square = x * x;
                uint64_t is_touched = delta != 0, is_same = s[j] == w;
                sum[0][j] += w * w;
                sum[1][j] += square;
                sum[2][j] += delta != 0 ? square : 0;
                sum[3][j] += delta * delta;
                sum[4][j] += off * off;
                sum[5][j] += moved * delta;
                touched[j] += is_touched;
                same[j] += is_touched & is_same;
                double inverse, far;
                uint64_t u = 0x7FE0000000000000 - word_of(power_of(x, least)); /* 1 / power */
                memcpy(&inverse, &u, 8);
                far = fabs(off) * inverse;
                most[j] = far > most[j] ? far : most[j];
            }
        }
        for (size_t k = 0; k < SUMS; k++)
            for (size_t j = 0; j < ABREAST; j++)
                totals[k][j] += sum[k][j];
    }
    for (size_t k = 0; k < SUMS; k++)
        sums[k] = in_halves(totals[k]);
    sums[SUMS] = largest_of(most);
    counts[0] = counts[1] = 0;
    for (size_t j = 0; j < ABREAST; j++) {
        counts[0] += touched[j];
        counts[1] += same[j];
    }
}

/* Of each column of rows (count, columns), from top to bottom: Σx², Σx² where x − before is not 0, and how many these
   are, added to squares, moved and touched. */
void LEVELLED(column_sums)(const double *restrict before, const double *restrict exact, size_t count, size_t columns,
                           double *restrict squares, double *restrict moved, double *restrict touched)
{
    for (size_t r = 0; r < count; r++)
        for (size_t c = 0; c < columns; c++) {
            double x = exact[r * columns + c], square = x * x;
            int differs = x - before[r * columns + c] != 0;
            squares[c] += square;
            moved[c] += differs ? square : 0;
            touched[c] += differs ? 1 : 0;
        }
}

/* What verification/tolerance.py says of single elements: constants are those of its Bounds, in order. */
typedef struct {
    double roundings, least, half, least_through, half_through, single, tiny, smallest, cast, roundoff, often, products;
} bounds;

static inline double larger(double x, double y) { return x > y || x != x ? x : y; } /* NaN stays */

static inline void limits_of(double w, double x, double terms, double found, const bounds *c, double *out)
{
    double moved = fabs(x - w), summed = larger(terms - fabs(w), 0), size = larger(fabs(x), fabs(found));
    size = c->roundings > 1 ? larger(size, terms) : size;
    double half = power_of(size, c->least) * c->half;
    double plain = c->roundings * half * (1 + 0x1p-20) + (c->single * terms + c->tiny);
    plain += c->half_through != 0 ? c->roundings * (power_of(size, c->least_through) * c->half_through) : 0;
    double delta = plain + 3 * c->smallest;
    delta += c->cast * half;
    delta += c->roundoff * (3 * larger(moved, summed * c->often) + c->products * terms);
    out[0] = plain;
    out[1] = delta;
    out[2] = delta + 2 * c->roundoff * summed;
}

/* How far from the exact value each number may lie, by three recipes. */
void LEVELLED(limits)(const double *restrict base, const double *restrict exact, const double *restrict terms,
                      const double *restrict found, size_t count, const bounds *restrict constants,
                      double *restrict plain, double *restrict delta, double *restrict narrow)
{
    const bounds own = *constants;
    for (size_t i = 0; i < count; i++) {
        double out[3];
        limits_of(base[i], exact[i], terms[i], found[i], &own, out);
        plain[i] = out[0];
        delta[i] = out[1];
        narrow[i] = out[2];
    }
}

/* For each of three recipes: how many numbers lie farther away, and the first of them, or `count`. */
void LEVELLED(outside)(const double *restrict base, const double *restrict exact, const double *restrict terms,
                       const double *restrict found, size_t count, const bounds *restrict constants,
                       uint64_t *restrict counts, uint64_t *restrict firsts)
{
    const bounds own = *constants;
    for (size_t k = 0; k < 3; k++) {
        counts[k] = 0;
        firsts[k] = count;
    }
    for (size_t start = 0; start < count; start += STRETCH) {
        size_t end = count - start < STRETCH ? count : start + STRETCH;
        uint64_t odd[3] = {0};
        for (size_t i = start; i < end; i++) {
            double out[3], off = fabs(found[i] - exact[i]);
            limits_of(base[i], exact[i], terms[i], found[i], &own, out);
            odd[0] += !(off <= out[0]);
            odd[1] += !(off <= out[1]);
            odd[2] += !(off <= out[2]);
        }
        for (size_t k = 0; k < 3; k++) {
            for (size_t i = start; odd[k] && firsts[k] == count && i < end; i++) {
                double out[3];
                limits_of(base[i], exact[i], terms[i], found[i], &own, out);
                if (!(fabs(found[i] - exact[i]) <= out[k]))
                    firsts[k] = i;
            }
            counts[k] += odd[k];
        }
    }
}
