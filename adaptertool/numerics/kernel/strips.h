/* Formulas over arrays, element by element, computed in strips that stay in the cache: what lazy.py makes of them is a
   list of steps, each of which fills one strip of float64, or takes one up. Truth values are 1 and 0.

   Each operation is rounded by itself, and in its order, so that the results are those of numpy. Sums are those of
   numpy too: a stretch is halved, at a multiple of 8, until at most 128 elements are left, which are added up in 8 sums.
   Source of that order: `pairwise sum` of numpy 2.4. */

#define STRIP 256 /* elements */
#define LEAF 128

enum {
    /* fill `to` with what is stored */
    READ_BF16, READ_F16, READ_F32, READ_F64, READ_TRUTH,
    FILL, /* with `number` */
    /* of a and b; one of both may be `number`: it is where the place is NUMBER */
    ADD, SUBTRACT, MULTIPLY, DIVIDE, LESS, LESS_EQUAL, EQUAL, AND, OR, SMALLER, LARGER,
    /* a + number * b; number * a + other * b; b where it equals a, else a */
    ADD_TIMES, TIMES_ADD_TIMES, SAME,
    /* of a; of a, b and c; of a */
    MAGNITUDE, NOT, CHOICE, BETWEEN,
    /* what is stored, less a; a + number * (what is stored, less b) */
    DIFFERENCE_BF16, DIFFERENCE_F16, DIFFERENCE_F32, ADD_DIFFERENCE_BF16, ADD_DIFFERENCE_F16, ADD_DIFFERENCE_F32,
    /* take a up, or with b: SAME of both, or the product of both */
    WRITE_BF16, WRITE_F16, WRITE_F32, WRITE_F64, SUM, COUNT, COLLECT
};

#define NUMBER (-1)

typedef struct {
    int32_t code, to, a, b, c;
    double number, other;
    void *data;
} strip_step;

/* BETWEEN: an element of a stays if its magnitude is over `bound`, or if that is equal to it and it is among the next
   `equal` that are; but not if it would stay by `skip` and `skip_equal`. */
typedef struct {
    double bound, skip;
    int64_t equal, skip_equal;
} strip_between;

/* WRITE: a, or SAME of a and b, rounded once to `out`, and every n-th element, from the first on, to `sample`;
   `largest`: the largest of the bits of what is written, but for their signs. */
typedef struct {
    void *out;
    double *sample;
    size_t every;
    uint64_t largest;
} strip_written;

/* COUNT: of the magnitudes whose bits are `prefix`, but for the lowest `width` + 16, how many have which upper 16 of
   these, found[65,536]; and which of the others any of them has, `rest`. COLLECT: the bits of those that are `prefix`
   but for the lowest `width`, `count` of them, in `found`. */
typedef struct {
    uint64_t prefix;
    int64_t width;
    uint64_t *found;
    size_t count;
    uint64_t rest;
} strip_digits;

typedef struct {
    const strip_step *steps;
    size_t count, length;
    double *room;   /* STRIP elements for each place */
    double **place; /* where the strips are */
    double *sums;   /* of the steps SUM, in their order; here they are added up */
    size_t summed;
} strip_job;

/* Of a, or of the products of a and b. */
static inline double strip_leaf_of(const double *a, const double *b, size_t n)
{
#define TERM(I) (b ? a[I] * b[I] : a[I])
    if (n < 8) {
        double sum = -0.0;
        for (size_t i = 0; i < n; i++)
            sum += TERM(i);
        return sum;
    }
    double r[8];
    size_t i;
    for (size_t j = 0; j < 8; j++)
        r[j] = TERM(j);
    for (i = 8; i < n - n % 8; i += 8)
        for (size_t j = 0; j < 8; j++)
            r[j] += TERM(i + j);
    double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++)
        sum += TERM(i);
    return sum;
#undef TERM
}

static double strip_leaf(const double *a, const double *b, size_t n)
{
    return b ? strip_leaf_of(a, b, n) : strip_leaf_of(a, NULL, n);
}

static inline size_t strip_half(size_t n) { return n / 2 - n / 2 % 8; }

static double strip_sum(const double *a, const double *b, size_t n)
{
    if (n <= LEAF)
        return strip_leaf(a, b, n);
    size_t half = strip_half(n);
    return strip_sum(a, b, half) + strip_sum(a + half, b ? b + half : NULL, n - half);
}

/* What the magnitudes that stay of n elements are over: those equal to the bound do, or none of them, or it depends on
   how many there are. */
static double strip_over(double bound, int64_t equal, size_t n)
{
    return equal < (int64_t)n ? bound : bound > 0 ? nextafter(bound, 0) : -1;
}

static inline int strip_some(int64_t equal, int64_t found, size_t n)
{
    return found > 0 && equal > 0 && equal < (int64_t)n;
}

static void strip_keep(strip_between *by, const double *restrict a, double *restrict to, size_t n)
{
    double bound = by->bound, over = strip_over(bound, by->equal, n);
    double skip = by->skip, skip_over = strip_over(skip, by->skip_equal, n);
    int64_t found = 0, skip_found = 0;
    for (size_t i = 0; i < n; i++) {
        double size = fabs(a[i]);
        found += size == bound;
        skip_found += size == skip;
        to[i] = (double)((size > over) & !(size > skip_over)) * a[i];
    }
    if (strip_some(by->equal, found, n) || strip_some(by->skip_equal, skip_found, n)) {
        int64_t left = by->equal, skip_left = by->skip_equal;
        for (size_t i = 0; i < n; i++) {
            double size = fabs(a[i]);
            int kept = size > bound || (size == bound && left-- > 0);
            int skipped = size > skip || (size == skip && skip_left-- > 0);
            to[i] = (double)(kept & !skipped) * a[i];
        }
    }
    by->equal -= found;
    by->skip_equal -= skip_found;
}

static void strip_count(strip_digits *by, const double *restrict a, size_t n)
{
    int width = (int)by->width;
    uint64_t rest = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, a + i, 8);
        bits &= ~((uint64_t)1 << 63);
        if (width == 48 || bits >> (width + 16) == by->prefix) {
            by->found[(bits >> width) & 0xFFFF]++;
            rest |= bits;
        }
    }
    by->rest |= rest & (((uint64_t)1 << width) - 1);
}

static void strip_collect(strip_digits *by, const double *restrict a, size_t n)
{
    size_t count = by->count;
    for (size_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, a + i, 8);
        bits &= ~((uint64_t)1 << 63);
        by->found[count] = bits;
        count += bits >> by->width == by->prefix;
    }
    by->count = count;
}

static inline double strip_value(const double *a, const double *b, size_t i)
{
    return b && a[i] == b[i] ? b[i] : a[i];
}

/* What once_to_BF16 gives, in half the time, but for numbers between 0 and the least normal float, and those that are
   none or too large: returns whether there are such. The last bit of the float is put in the double, so nothing is
   narrowed but the result. */
static inline uint32_t strip_to_BF16(
    const double *restrict a, const double *restrict b, uint16_t *restrict out, size_t n)
{
    const uint64_t lost = ((uint64_t)1 << 29) - 1; /* bits that a double has, and a float has not */
    float odd[STRIP];
    uint32_t other = 0;
    for (size_t i = 0; i < n; i++) {
        double x = strip_value(a, b, i);
        uint64_t u;
        memcpy(&u, &x, 8);
        u = (u | ((u & lost) + lost)) & ~lost;
        memcpy(&x, &u, 8);
        odd[i] = (float)x;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t u = bits_of(odd[i]), size = u & 0x7FFFFFFF;
        other |= (size >= 0x7F800000) | ((size != 0) & (size < 0x00800000));
        out[i] = (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
    }
    return other;
}

#define WRITER(DTYPE, HELD, WORD, LARGEST, UNLESS, ROUNDED)                                                           \
    static inline __attribute__((always_inline)) void strip_write_##DTYPE(                                            \
        strip_written *by, size_t first, const double *restrict a, const double *restrict b, size_t n)                \
    {                                                                                                                 \
        HELD *restrict out = (HELD *)by->out + first;                                                                 \
        WORD largest = 0;                                                                                             \
        UNLESS                                                                                                        \
        for (size_t i = 0; i < n; i++)                                                                                \
            out[i] = (HELD)ROUNDED(strip_value(a, b, i));                                                             \
        for (size_t i = 0; i < n; i++) {                                                                              \
            WORD bits;                                                                                                \
            memcpy(&bits, out + i, sizeof bits);                                                                      \
            bits &= LARGEST;                                                                                          \
            largest = bits > largest ? bits : largest;                                                                \
        }                                                                                                             \
        by->largest = (uint64_t)largest > by->largest ? (uint64_t)largest : by->largest;                              \
        for (size_t i = (by->every - first % by->every) % by->every; i < n; i += by->every)                           \
            by->sample[(first + i) / by->every] = strip_value(a, b, i);                                               \
    }

WRITER(BF16, uint16_t, int16_t, INT16_MAX, if (strip_to_BF16(a, b, out, n)), once_to_BF16)
WRITER(F16, uint16_t, int16_t, INT16_MAX, , once_to_F16)
WRITER(F32, float, int32_t, INT32_MAX, , )
WRITER(F64, double, int64_t, INT64_MAX, , )

#define FILLED(EXPRESSION) for (size_t i = 0; i < n; i++) to[i] = EXPRESSION; break
/* x and y: the elements of a and b, or the number in the place of either. */
#define PAIR(CODE, EXPRESSION)                                                                                        \
    case CODE:                                                                                                        \
        if (step->a == NUMBER)                                                                                        \
            for (size_t i = 0; i < n; i++) { double x = number, y = b[i]; to[i] = EXPRESSION; }                       \
        else if (step->b == NUMBER)                                                                                   \
            for (size_t i = 0; i < n; i++) { double x = a[i], y = number; to[i] = EXPRESSION; }                       \
        else                                                                                                          \
            for (size_t i = 0; i < n; i++) { double x = a[i], y = b[i]; to[i] = EXPRESSION; }                         \
        break
#define DIFFERENCE(DTYPE, HELD)                                                                                       \
    case DIFFERENCE_##DTYPE: FILLED(from_##DTYPE(((const HELD *)data)[first + i]) - a[i]);                            \
    case ADD_DIFFERENCE_##DTYPE: FILLED(a[i] + number * (from_##DTYPE(((const HELD *)data)[first + i]) - b[i]));
#define WRITTEN(DTYPE)                                                                                                \
    case WRITE_##DTYPE:                                                                                               \
        if (b)                                                                                                        \
            strip_write_##DTYPE(data, first, a, b, n);                                                                \
        else                                                                                                          \
            strip_write_##DTYPE(data, first, a, NULL, n);                                                             \
        break;

/* Takes all steps for n elements from `first` on, n at most STRIP; sums: for the steps SUM. */
static void strip_run(const strip_job *job, size_t first, size_t n, double *sums)
{
    double **place = job->place;
    for (const strip_step *step = job->steps; step < job->steps + job->count; step++) {
        const double *a = step->a < 0 ? NULL : place[step->a], *b = step->b < 0 ? NULL : place[step->b];
        const double *c = step->c < 0 ? NULL : place[step->c];
        double *to = step->to < 0 ? NULL : job->room + (size_t)step->to * STRIP;
        const double number = step->number, other = step->other;
        void *data = step->data;
        if (to)
            place[step->to] = to;
        switch (step->code) {
        case READ_BF16: FILLED(from_BF16(((const uint16_t *)data)[first + i]));
        case READ_F16: FILLED(from_F16(((const uint16_t *)data)[first + i]));
        case READ_F32: FILLED(((const float *)data)[first + i]);
        case READ_F64: place[step->to] = (double *)data + first; break;
        case READ_TRUTH: FILLED(((const uint8_t *)data)[first + i] != 0);
        case FILL: FILLED(number);
        PAIR(ADD, x + y);
        PAIR(SUBTRACT, x - y);
        PAIR(MULTIPLY, x * y);
        PAIR(DIVIDE, x / y);
        PAIR(LESS, x < y);
        PAIR(LESS_EQUAL, x <= y);
        PAIR(EQUAL, x == y);
        PAIR(AND, x * y);
        PAIR(OR, x > y ? x : y);
        PAIR(SMALLER, (x < y) | (x != x) ? x : y);
        PAIR(LARGER, (x > y) | (x != x) ? x : y);
        case ADD_TIMES: FILLED(a[i] + number * b[i]);
        case TIMES_ADD_TIMES: FILLED(number * a[i] + other * b[i]);
        case SAME: FILLED(a[i] == b[i] ? b[i] : a[i]);
        case MAGNITUDE: FILLED(fabs(a[i]));
        case NOT: FILLED(1 - a[i]);
        case CHOICE: FILLED(a[i] != 0 ? b[i] : c[i]);
        case BETWEEN: strip_keep(data, a, to, n); break;
        DIFFERENCE(BF16, uint16_t)
        DIFFERENCE(F16, uint16_t)
        DIFFERENCE(F32, float)
        WRITTEN(BF16)
        WRITTEN(F16)
        WRITTEN(F32)
        WRITTEN(F64)
        case SUM: *sums++ = strip_sum(a, b, n); break;
        case COUNT: strip_count(data, a, n); break;
        case COLLECT: strip_collect(data, a, n); break;
        }
    }
}

static void strip_walk(const strip_job *job, size_t first, size_t n, double *sums)
{
    if (n <= STRIP) {
        strip_run(job, first, n, sums);
        return;
    }
    size_t half = strip_half(n);
    double *more = sums + job->summed;
    strip_walk(job, first, half, sums);
    strip_walk(job, first + half, n - half, more);
    for (size_t i = 0; i < job->summed; i++)
        sums[i] += more[i];
}

/* The whole formula. job->sums has room for `summed` numbers 64 times: halves of halves wait for each other. */
void LEVELLED(strips)(const strip_job *job) { strip_walk(job, 0, job->length, job->sums); }

#undef WRITER
#undef FILLED
#undef PAIR
#undef DIFFERENCE
#undef WRITTEN
