/* DoRA, in one visit of each row: included by fused_double.h once for each dtype, STORED, held as HELD.

   V = w + left·right, f = m / ‖V‖, and x = w + t·(f·V − w) = (1 − t)·w + t·f·V, with t = α·weight. Computed are c1 of
   1 − t and c2 of t·f. |V̂ − V| ≤ δ + u·|V̂|, with δ = (rank + 5)·u·‖left_i‖·‖right_j‖, so ‖V̂‖ is within
   (rank + 5)·u·‖left_i‖·‖right‖ + u·‖V̂‖ of the norm, and the sum of squares, half of whose relative error is that of its root, takes
   columns/LOOK + 16 roundings one after another: `squares_of` has at most 5 in a group of LOOK, 2 where the parts of a
   group are joined, columns/LOOK + 1, and one for each lane but the first. All of it relatively to the norm is `off`, and f is known to within off + 2·off² + 2·u. */

#define FROM GLUED(from, STORED)
#define ROW GLUED(row_of_dora, STORED)
#define TILE GLUED(tile_of_dora, STORED)
#define AGAIN GLUED(again_in_dora, STORED)
#define SQUARED GLUED(squares_of, STORED)
#define DOUBLES_FROM GLUED(doubles_from, STORED)
#define VECTOR_TO GLUED(vector_to, STORED)

/* v (LOOK, `wide` of them there) += the row from `in` on; the rest is 0. Returns the sums of squares, in lanes. */
static inline doubles SQUARED(const HELD *in, size_t wide, double *v)
{
    HELD padded[LOOK];
    doubles sums[4];
    if (wide < LOOK) {
        memset(padded, 0, sizeof padded);
        in = memcpy(padded, in, wide * sizeof *in);
        for (size_t j = wide; j < LOOK; j++)
            v[j] = 0;
    }
    EACH for (int n = 0; n < 4; n++) sums[n] = all_doubles(0);
    for (size_t j = 0; j < LOOK; j += 4 * DOUBLES)
        EACH for (int n = 0; n < 4; n++)
        {
            loose_doubles *at = (loose_doubles *)(v + j + n * DOUBLES);
            doubles sum = *at + DOUBLES_FROM(in + j + n * DOUBLES);
            *at = sum;
            sums[n] = add_times_doubles(sum, sum, sums[n]);
        }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* 2·FLOATS elements of a row from `in` to `out`, in which nothing else lies: returns which of them are open. */
static inline __attribute__((always_inline)) uint32_t TILE(const HELD *in, const double *v, const float *norm, HELD *out,
                                                           const dora_row *row, longs *fine)
{
    const doubles c1 = all_doubles(row->c1), c2 = all_doubles(row->c2), each = all_doubles(row->each);
    const doubles of_v = all_doubles(row->of_v), of_w = all_doubles(row->of_w), margin = all_doubles(MARGIN);
    words low[2], differ[2];
    EACH for (int n = 0; n < 2; n++)
    {
        doubles ends[2][2];
        EACH for (int h = 0; h < 2; h++)
        {
            const size_t at = (size_t)n * FLOATS + (size_t)h * DOUBLES;
            doubles w = DOUBLES_FROM(in + at), p = c2 * *(const loose_doubles *)(v + at);
            doubles x = add_times_doubles(c1, w, p), size = size_doubles(x);
            doubles reach = add_times_doubles(each, doubles_at(norm + at), all_doubles(LEAST));
            reach = add_times_doubles(of_v, size_doubles(p), reach);
            reach = add_times_doubles(of_w, size_doubles(w), add_times_doubles(margin, size, reach));
            *fine &= (longs)(size < LIMIT);
            ends[0][h] = x - reach;
            ends[1][h] = x + reach;
        }
        low[n] = VECTOR_TO(joined(ends[0][0], ends[0][1]), joined(ends[1][0], ends[1][1]), &differ[n]);
    }
    PUT(out, low[0], low[1]);
    if (!any_set(differ[0] | differ[1], DIFFERENCE))
        return 0;
    return which_set(differ[0], DIFFERENCE) | which_set(differ[1], DIFFERENCE) << FLOATS;
}

/* Element j of row i, of which the ends differ: again, with ends that are rounded once. */
static __attribute__((noinline)) void AGAIN(const block_job *job, size_t a, size_t i, size_t j, const double *v,
                                            const dora_row *row)
{
    double w = FROM(((const HELD *)job->in)[i * job->columns + j]), p = row->c2 * v[j], x = row->c1 * w + p;
    double reach = row->each * job->right_norm[j] + row->of_v * fabs(p) + row->of_w * fabs(w) +
                   4 * DOUBLE_UNIT * fabs(x) + 0x1p-1060;
    uint32_t low = GLUED(once_to, STORED)(x - reach), high = GLUED(once_to, STORED)(x + reach);
    if (low != high)
        leave(job, a, i * job->columns + j);
    ((HELD *)job->out[a])[i * job->columns + j] = STORE(low);
}

/* How many of `count` elements are not stored as they were. */
static size_t GLUED(moved, STORED)(const HELD *restrict in, const HELD *restrict out, size_t count)
{
    size_t all = 0;
    for (size_t first = 0; first < count; first += LOOK) {
        const size_t end = count - first < LOOK ? count : first + LOOK;
        WORD moved = 0; /* as wide as what is stored, for the sake of vectors */
        for (size_t j = first; j < end; j++)
            moved += BITS(out[j]) != BITS(in[j]);
        all += moved;
    }
    return all;
}

/* Rounds row i, for V (columns), f and how far it is off, relatively. Returns 0 where an element is too large, or none. */
static int ROW(const block_job *job, size_t a, size_t i, const double *restrict v, double f, double off)
{
    const HELD *restrict in = (const HELD *)job->in + i * job->columns;
    HELD *restrict out = (HELD *)job->out[a] + i * job->columns;
    double t = job->alpha[a] * job->weight, c1 = t == 1 ? 0 : 1 - t, c2 = t * f, u = DOUBLE_UNIT;
    const dora_row row = {c1, c2, fabs(c2) * ((double)job->rank + 6) * u * job->left_norm[i] * WIDER,
                          (off + 2 * off * off + 8 * u) * WIDER, t == 1 ? 0 : 4 * u * (fabs(c1) + fabs(t) + 1)};
    longs fine = ~(longs){0};
    size_t c = 0;
    for (; c + 2 * FLOATS <= job->columns; c += 2 * FLOATS)
        for (uint32_t some = TILE(in + c, v + c, job->right_norm + c, out + c, &row, &fine); some; some &= some - 1)
            AGAIN(job, a, i, c + (size_t)__builtin_ctz(some), v, &row);
    if (c < job->columns) {
        HELD old[2 * FLOATS] = {0}, new[2 * FLOATS];
        size_t wide = job->columns - c;
        memcpy(old, in + c, wide * sizeof *old);
        uint32_t some = TILE(old, v + c, job->right_norm + c, new, &row, &fine) & (((uint32_t)1 << wide) - 1);
        memcpy(out + c, new, wide * sizeof *new);
        for (; some; some &= some - 1)
            AGAIN(job, a, i, c + (size_t)__builtin_ctz(some), v, &row);
    }
    job->changed[a] += GLUED(moved, STORED)(in, out, job->columns);
    if (sampled(job, i))
        for (size_t j = 0; j < job->columns; j++) {
            double w = FROM(in[j]), delta = c1 * w + c2 * v[j] - w;
            job->kept[a] += ((double)FROM(out[j]) - w) * delta;
            job->update[a] += delta * delta;
        }
    return all_set(fine);
}

/* Makes the block. Returns 0 where it cannot: a number is too large, or none, or a norm next to nothing. */
int LEVELLED(GLUED(dora, STORED))(const block_job *job)
{
    size_t stride = (job->columns + LOOK - 1) / LOOK * LOOK, high;
    double *rows = malloc(TALL * stride * sizeof *rows), u = DOUBLE_UNIT;
    double roundings = (double)(job->columns / LOOK + 16) / 2 + 2, sums = ((double)job->rank + 5) * u * WIDER;
    int fine = rows != NULL;
    for (size_t row = 0; fine && row < job->rows; row += high) {
        size_t which[TALL];
        doubles lanes[TALL];
        for (high = 0; high < TALL && row + high < job->rows; high++) {
            which[high] = row + high;
            lanes[high] = all_doubles(0);
        }
        for (size_t begin = 0; begin < job->columns; begin += DORA_COLUMNS) { /* so many stay in the cache */
            size_t end = begin + DORA_COLUMNS < job->columns ? begin + DORA_COLUMNS : job->columns;
            products(job, which, high, begin, end, rows + begin, stride);
            for (size_t i = 0; i < high; i++)
                for (size_t c = begin; c < end; c += LOOK)
                    lanes[i] += SQUARED((const HELD *)job->in + which[i] * job->columns + c,
                                        job->columns - c < LOOK ? job->columns - c : LOOK, rows + i * stride + c);
        }
        for (size_t i = 0; i < high && fine; i++) {
            double *v = rows + i * stride, squares = 0;
            for (size_t l = 0; l < DOUBLES; l++)
                squares += lanes[i][l];
            double norm = sqrt(squares), m = job->magnitude[which[i]], f = m / norm;
            double off = sums * job->left_norm[which[i]] * job->right_length / norm + roundings * u;
            fine = off < 0x1p-10 && norm > 0x1p-300 && norm < 0x1p300 && fabs(f) < 0x1p300;
            for (size_t a = 0; a < job->alphas && fine; a++)
                fine = ROW(job, a, which[i], v, f, off) != 0;
        }
    }
    free(rows);
    return fine;
}

#undef FROM
#undef ROW
#undef TILE
#undef AGAIN
#undef SQUARED
#undef DOUBLES_FROM
#undef VECTOR_TO
