/* Numbers as the sum of two doubles, with a bound of the error: double_double.py tells how, and has a twin of each
   function in numpy, of the same bits. Plain loops, so that the compiler makes vector code of them. */

typedef struct { double high, low; } dd_pair;
typedef struct { double high, low, error; } dd_bounded;

static inline dd_pair dd_two_sum(double a, double b)
{
    double sum = a + b, back = sum - a;
    return (dd_pair){sum, (a - (sum - back)) + (b - back)};
}

static inline dd_pair dd_two_product(double a, double b)
{
    double p = a * b;
#if defined(__FMA__) || defined(__aarch64__)
    return (dd_pair){p, __builtin_fma(a, b, -p)};
#else
    double c = 134217729.0 * a, d = 134217729.0 * b;
    double ah = c - (c - a), bh = d - (d - b), al = a - ah, bl = b - bh;
    return (dd_pair){p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
#endif
}

#define DD_UNIT 0x1p-53
#define DD_WIDER (1 + 0x1p-40)  /* for the roundings of the bound itself */
#define DD_SMALL 0x1p-900       /* products below may lose bits, of no more than DD_LOST */
#define DD_LOST 0x1p-1060

static inline double dd_unsafe(double x, double y, double p) { return (x != 0) & (y != 0) & (fabs(p) < DD_SMALL) ? DD_LOST : 0; }

static inline dd_bounded dd_sum_of(dd_bounded x, dd_bounded y)
{
    dd_pair s = dd_two_sum(x.high, y.high), v = dd_two_sum(x.low, y.low);
    dd_pair c = dd_two_sum(s.low, v.high), r = dd_two_sum(s.high, c.high);
    double g = c.low + v.low;
    dd_pair f = dd_two_sum(r.low, g), z = dd_two_sum(r.high, f.high);
    return (dd_bounded){z.high, z.low, (x.error + y.error + fabs(f.low) + DD_UNIT * fabs(g)) * DD_WIDER};
}

static inline dd_bounded dd_product_of(dd_bounded x, dd_bounded y)
{
    dd_pair p = dd_two_product(x.high, y.high), m = dd_two_product(x.high, y.low), n = dd_two_product(x.low, y.high);
    dd_pair a = dd_two_sum(m.high, n.high), b = dd_two_sum(p.low, a.high), r = dd_two_sum(p.high, b.high);
    double both = x.low * y.low, g = (a.low + b.low) + (m.low + n.low) + both;
    double sizes = (fabs(a.low) + fabs(b.low)) + (fabs(m.low) + fabs(n.low)) + fabs(both);
    dd_pair f = dd_two_sum(r.low, g), z = dd_two_sum(r.high, f.high);
    double own = fabs(x.high) + fabs(x.low), other = fabs(y.high) + fabs(y.low);
    double given = own * y.error + other * x.error + x.error * y.error;
    int off = (x.error + y.error != 0) & (own + x.error != 0) & (other + y.error != 0);
    double lost = dd_unsafe(x.high, y.high, p.high) + dd_unsafe(x.high, y.low, m.high) + dd_unsafe(x.low, y.high, n.high)
        + (off | ((x.low != 0) & (y.low != 0)) ? DD_LOST : 0);
    return (dd_bounded){z.high, z.low, (given + fabs(f.low) + 8 * DD_UNIT * sizes) * DD_WIDER + lost};
}

/* out = x ∘ y for (rows, columns): x and out contiguous, each three arrays, one after the other; of y the element (i, j)
   is at i·down + j·across, across 0 or 1. out may be x. */
#define DD_EACH(NAME, OF)                                                                                                \
    static inline void NAME##_rows(const double *x, size_t size, const double *y, size_t apart, double *out,          \
                                   size_t rows, size_t columns, size_t down, size_t across, double sign)              \
    {                                                                                                                 \
        for (size_t i = 0; i < rows; i++) {                                                                           \
            const double *a = x + i * columns, *b = y + i * down;                                                     \
            double *o = out + i * columns;                                                                            \
            _Pragma("GCC ivdep") for (size_t j = 0; j < columns; j++)                                                 \
            {                                                                                                         \
                size_t k = j * across;                                                                                \
                dd_bounded z = OF((dd_bounded){a[j], a[size + j], a[2 * size + j]},                                         \
                               (dd_bounded){sign * b[k], sign * b[apart + k], b[2 * apart + k]});                        \
                o[j] = z.high;                                                                                        \
                o[size + j] = z.low;                                                                                  \
                o[2 * size + j] = z.error;                                                                            \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    void LEVELLED(NAME)(const double *x, const double *y, size_t apart, double *out, size_t rows, size_t columns,     \
                        size_t down, size_t across, double sign)                                                      \
    {                                                                                                                 \
        if (across)                                                                                                   \
            NAME##_rows(x, rows * columns, y, apart, out, rows, columns, down, 1, sign);                              \
        else                                                                                                          \
            NAME##_rows(x, rows * columns, y, apart, out, rows, columns, down, 0, sign);                              \
    }

DD_EACH(pairs_sum, dd_sum_of)
DD_EACH(pairs_product, dd_product_of)

enum { DD_DEPTH = 4, DD_STRIP = 256 }; /* columns whose sums stay in the cache */

/* One term x·a more of each of `count` sums, for x = high + low ± error. `across`: x is another for each. */
static inline void dd_add_terms(const double *high, const double *low, const double *error, size_t across,
                             const double *restrict a, size_t count, double *restrict sum, double *restrict rest,
                             double *restrict sizes, double *restrict given)
{
    for (size_t j = 0; j < count; j++) {
        size_t k = j * across;
        dd_pair p = dd_two_product(high[k], a[j]), s = dd_two_sum(sum[j], p.high);
        double second = low[k] * a[j], beside = p.low + second, t = beside + s.low, total = rest[j] + t;
        sum[j] = s.high;
        rest[j] = total;
        sizes[j] += (fabs(second) + fabs(beside)) + (fabs(t) + fabs(total));
        given[j] += error[k] * fabs(a[j]);
    }
}

/* The same where x = high alone, for `depth` terms: rows of a are `apart`. */
static inline void dd_add_plain_terms(const double *restrict high, size_t depth, const double *restrict a, size_t apart,
                                      size_t count, double *restrict sum, double *restrict rest, double *restrict sizes)
{
    for (size_t j = 0; j < count; j++) {
        double own = sum[j], total = rest[j], size = sizes[j];
        for (size_t k = 0; k < depth; k++) {
            dd_pair p = dd_two_product(high[k], a[k * apart + j]), s = dd_two_sum(own, p.high);
            double t = p.low + s.low;
            own = s.high;
            total += t;
            size += fabs(t) + fabs(total);
        }
        sum[j] = own;
        rest[j] = total;
        sizes[j] = size;
    }
}

/* The same where all products are exact (dd_narrow): all sums are split, so where nothing is lost `lost` stays 0. */
static inline void dd_add_narrow_terms(const double *restrict high, size_t depth, const double *restrict a, size_t apart,
                                       size_t count, double *restrict sum, double *restrict rest, double *restrict lost)
{
    for (size_t j = 0; j < count; j++) {
        double own = sum[j], total = rest[j], size = lost[j];
        for (size_t k = 0; k < depth; k++) {
            dd_pair s = dd_two_sum(own, high[k] * a[k * apart + j]), t = dd_two_sum(total, s.low);
            own = s.high;
            total = t.high;
            size += fabs(t.low);
        }
        sum[j] = own;
        rest[j] = total;
        lost[j] = size;
    }
}

/* Whether the last `bits` bits of all are 0. */
static inline int dd_narrow(const double *x, size_t count, int bits)
{
    uint64_t any = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t own;
        memcpy(&own, x + i, 8);
        any |= own;
    }
    return (any & ((UINT64_C(1) << bits) - 1)) == 0;
}

/* The least magnitude above 0 of `count` numbers, or `least`. */
static inline double dd_least_of(const double *x, size_t count, double least)
{
    for (size_t i = 0; i < count; i++) {
        double size = x[i] != 0 ? fabs(x[i]) : INFINITY;
        least = size < least ? size : least;
    }
    return least;
}

/* Whether all are 0: what is infinite or no number is not. */
static inline int dd_all_zero(const double *x, size_t count)
{
    int any = 0;
    for (size_t i = 0; i < count; i++)
        any |= x[i] != 0;
    return !any;
}

/* out = left @ right, three arrays of (rows, columns) one after the other, and `to` more than that, which may be out, or
   is null. left: three arrays (rows, rank), or where across is 1 (rank, columns) and rows is 1: then each column has its
   own left. right: doubles (rank, columns). */
void LEVELLED(pairs_dot)(const double *left, const double *right, const double *to, double *out, size_t rows,
                         size_t columns, size_t rank, size_t across)
{
    size_t size = rows * columns, apart = across ? rank * columns : rows * rank;
    int exact = dd_all_zero(left + 2 * apart, apart);
    double least = dd_least_of(left, 2 * apart, INFINITY) * dd_least_of(right, rank * columns, INFINITY);
    double lost = exact && least >= DD_SMALL ? 0 : (double)rank * DD_LOST;
    /* Products of 29 bits and 24 are exact. */
    int narrow = !across && lost == 0 && dd_narrow(left, apart, 24) && dd_narrow(right, rank * columns, 29) &&
                 dd_all_zero(left + apart, apart);
    for (size_t start = 0; start < columns; start += DD_STRIP)
        for (size_t i = 0; i < rows; i++) {
            double sum[DD_STRIP] = {0}, rest[DD_STRIP] = {0}, sizes[DD_STRIP] = {0}, given[DD_STRIP] = {0};
            size_t count = columns - start < DD_STRIP ? columns - start : DD_STRIP;
            const double *low = left + apart + i * rank;
            int plain = !across && dd_all_zero(low, rank) && dd_all_zero(low + apart, rank);
            for (size_t k = 0; k < rank; k++) {
                const double *a = right + k * columns + start, *x = left + (across ? k * columns + start : i * rank + k);
                if (narrow && k + DD_DEPTH <= rank) {
                    dd_add_narrow_terms(x, DD_DEPTH, a, columns, count, sum, rest, given);
                    k += DD_DEPTH - 1;
                } else if (narrow)
                    dd_add_narrow_terms(x, 1, a, columns, count, sum, rest, given);
                else if (across)
                    dd_add_terms(x, x + apart, x + 2 * apart, 1, a, count, sum, rest, sizes, given);
                else if (!plain)
                    dd_add_terms(x, x + apart, x + 2 * apart, 0, a, count, sum, rest, sizes, given);
                else if (k + DD_DEPTH <= rank) {
                    dd_add_plain_terms(x, DD_DEPTH, a, columns, count, sum, rest, sizes);
                    k += DD_DEPTH - 1;
                } else
                    dd_add_plain_terms(x, 1, a, columns, count, sum, rest, sizes);
            }
            double *o = out + i * columns + start;
            const double *own = to + i * columns + start;
            if (to == NULL)
                for (size_t j = 0; j < count; j++) {
                    dd_pair z = dd_two_sum(sum[j], rest[j]);
                    o[j] = z.high;
                    o[size + j] = z.low;
                    o[2 * size + j] = (given[j] + DD_UNIT * sizes[j]) * DD_WIDER + lost;
                }
            else
                _Pragma("GCC ivdep") for (size_t j = 0; j < count; j++)
                {
                    dd_pair p = dd_two_sum(sum[j], rest[j]);
                    double error = (given[j] + DD_UNIT * sizes[j]) * DD_WIDER + lost;
                    dd_bounded z = dd_sum_of((dd_bounded){own[j], own[size + j], own[2 * size + j]},
                                             (dd_bounded){p.high, p.low, error});
                    o[j] = z.high;
                    o[size + j] = z.low;
                    o[2 * size + j] = z.error;
                }
        }
}

/* out = left @ right of `count` blocks (b, b): left and out three arrays (count, b, b) one after the other, right doubles
   (count, b, b). Returns 0 where there is no memory. */
int LEVELLED(pairs_blocks)(const double *left, const double *right, double *out, size_t count, size_t b)
{
    size_t size = b * b;
    double *own = malloc(6 * size * sizeof *own);
    for (size_t i = 0; own && i < count; i++) {
        for (size_t part = 0; part < 3; part++)
            memcpy(own + part * size, left + (part * count + i) * size, size * sizeof *own);
        LEVELLED(pairs_dot)(own, right + i * size, NULL, own + 3 * size, b, b, b, 0);
        for (size_t part = 0; part < 3; part++)
            memcpy(out + (part * count + i) * size, own + (3 + part) * size, size * sizeof *own);
    }
    free(own);
    return own != NULL;
}

/* out = the sum of each row of x, or of its squares: (rows, columns) as above, three arrays (rows). DD_LANES sums are
   side by side. */
enum { DD_LANES = 16 };
#define DD_TOTAL(NAME, TERM)                                                                                          \
    void LEVELLED(NAME)(const double *x, double *out, size_t rows, size_t columns)                                    \
    {                                                                                                                 \
        size_t size = rows * columns;                                                                                 \
        for (size_t i = 0; i < rows; i++) {                                                                           \
            double high[DD_LANES] = {0}, low[DD_LANES] = {0}, error[DD_LANES] = {0};                                  \
            for (size_t start = 0; start < columns; start += DD_LANES) {                                              \
                size_t count = columns - start < DD_LANES ? columns - start : DD_LANES;                               \
                const double *a = x + i * columns + start;                                                            \
                if (count == DD_LANES) /* a loop of known length */                                                   \
                    for (size_t j = 0; j < DD_LANES; j++)                                                             \
                        dd_add_term(high, low, error, j, TERM((dd_bounded){a[j], a[size + j], a[2 * size + j]}));     \
                else                                                                                                  \
                    for (size_t j = 0; j < count; j++)                                                                \
                        dd_add_term(high, low, error, j, TERM((dd_bounded){a[j], a[size + j], a[2 * size + j]}));     \
            }                                                                                                         \
            for (size_t width = DD_LANES / 2; width; width /= 2)                                                      \
                for (size_t j = 0; j < width; j++)                                                                    \
                    dd_add_term(high, low, error, j,                                                                  \
                                (dd_bounded){high[j + width], low[j + width], error[j + width]});                     \
            out[i] = high[0];                                                                                         \
            out[rows + i] = low[0];                                                                                   \
            out[2 * rows + i] = error[0];                                                                             \
        }                                                                                                             \
    }

static inline void dd_add_term(double *high, double *low, double *error, size_t j, dd_bounded x)
{
    dd_bounded z = dd_sum_of((dd_bounded){high[j], low[j], error[j]}, x);
    high[j] = z.high;
    low[j] = z.low;
    error[j] = z.error;
}

static inline dd_bounded dd_itself(dd_bounded x) { return x; }
static inline dd_bounded dd_square_of(dd_bounded x) { return dd_product_of(x, x); }

DD_TOTAL(pairs_total, dd_itself)
DD_TOTAL(pairs_squares, dd_square_of)

/* high + low, rounded to nearest; or to odd: to the one of both neighbours whose last bit is 1. */
static inline double dd_end(double high, double low, int64_t odd)
{
    dd_pair s = dd_two_sum(high, low);
    int64_t bits, step = (s.low > 0) == (s.high > 0) ? 1 : -1;
    memcpy(&bits, &s.high, 8);
    bits += s.low != 0 && (bits & 1) == 0 ? step & -odd : 0;
    memcpy(&s.high, &bits, 8);
    return s.high;
}

/* Both ends of the intervals that hold x, three arrays of `count`. */
void LEVELLED(pairs_ends)(const double *restrict x, size_t count, double *restrict below, double *restrict above,
                          size_t odd)
{
    for (size_t i = 0; i < count; i++) {
        dd_pair down = dd_two_sum(x[count + i], -x[2 * count + i]), up = dd_two_sum(x[count + i], x[2 * count + i]);
        double less = down.low < 0 ? fabs(down.high) * 0x1p-52 + 0x1p-1074 : 0;
        double more = up.low > 0 ? fabs(up.high) * 0x1p-52 + 0x1p-1074 : 0;
        below[i] = dd_end(x[i], down.high - less, (int64_t)odd);
        above[i] = dd_end(x[i], up.high + more, (int64_t)odd);
    }
}

/* out = x rounded to nearest, `count` of them; tells in `open` where the interval has ends that are rounded otherwise, or
   no number, or 0, whose sign is a matter of its own. Returns how many. */
size_t LEVELLED(pairs_nearest)(const double *restrict x, size_t count, double *restrict out, int32_t *restrict open)
{
    size_t found = 0;
    for (size_t start = 0; start < count; start += DD_STRIP) {
        size_t some = count - start < DD_STRIP ? count - start : DD_STRIP;
        const double *high = x + start, *low = high + count, *error = low + count;
        double *near = out + start;
        int64_t differ[DD_STRIP], any = 0;
        for (size_t j = 0; j < some; j++) {
            dd_pair down = dd_two_sum(low[j], -error[j]), up = dd_two_sum(low[j], error[j]);
            double less = down.low < 0 ? fabs(down.high) * 0x1p-52 + 0x1p-1074 : 0;
            double more = up.low > 0 ? fabs(up.high) * 0x1p-52 + 0x1p-1074 : 0;
            double below = high[j] + (down.high - less), above = high[j] + (up.high + more);
            near[j] = below;
            differ[j] = !((below == above) & (high[j] != 0) & (fabs(below) <= DBL_MAX));
            any |= differ[j];
        }
        if (any)
            for (size_t j = 0; j < some; j++)
                if (differ[j])
                    open[found++] = (int32_t)(start + j);
    }
    return found;
}

/* As the functions of this name in convert.h. */
size_t LEVELLED(round_f8_F64)(const double *restrict in, double error, double relative, double *restrict out,
                              size_t count, int32_t *restrict open)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        double size = fabs(in[i]) < DBL_MAX ? fabs(in[i]) : DBL_MAX, reach = error + relative * size;
        double low = in[i] - reach, high = in[i] + reach;
        out[i] = low;
        open[found] = (int32_t)i;
        found += memcmp(&low, &high, 8) != 0;
    }
    return found;
}
