/* w + t·(h + l), or w + t·(w·h − w), of stored numbers w and float64 ones, rounded once: included by fused_double.h once
   for each dtype, STORED, held as HELD.

   t is known to within off·|t|, and h + l to within error. Computed is s = w + t·h, of which the product and the sum are
   each rounded, so with u = 2^-53 it is within |t|·((u + off)·|h| + |l| + error) + u·|s| of the value, but for products
   of small numbers with each other; for gains, with p = w·h and p − w rounded too, within |t|·(3·u + off)·(|p| + |w|) +
   u·|s|. The ends s − e and s + e are rounded themselves, by u of |s| + e each; and, for 16 bits, by way of float:
   MARGIN, LEAST. Where both are stored as one number, that is the rounding of the value.

   Elsewhere, again: with p + q the exact product of t and h, and s + r the exact sum of w and p, the value is s + r + q +
   t·l. If r and q are all that is lacking it is decided, ties included (rounded_odd); else the ends are rounded once, for
   an e that is not less than the sum of what is lacking. Of gains, w·h = g + c and g − w = d + b, exactly: so h is d, and
   l is b + c. For t = 1 the value is g + c itself. */

#define FROM GLUED(from, STORED)
#define ONCE GLUED(once_to, STORED)
#define TILE GLUED(tile_of_change, STORED)
#define AGAIN GLUED(again_in_change, STORED)
#define DOUBLES_FROM GLUED(doubles_from, STORED)
#define VECTOR_TO GLUED(vector_to, STORED)

/* 2·FLOATS elements from `in` to `out`, in which nothing else lies: returns which of them are open. */
static inline __attribute__((always_inline)) uint32_t TILE(const HELD *in, const double *change, const double *rest,
                                                           HELD *out, const change_row *row, int gain, longs *fine)
{
    const doubles t = all_doubles(row->t), of_change = all_doubles(row->of_change), of_rest = all_doubles(row->of_rest);
    words low[2], differ[2];
    EACH for (int n = 0; n < 2; n++)
    {
        doubles ends[2][2];
        EACH for (int half = 0; half < 2; half++)
        {
            const size_t at = (size_t)n * FLOATS + (size_t)half * DOUBLES;
            doubles w = DOUBLES_FROM(in + at), h = *(const loose_doubles *)(change + at), of = size_doubles(h);
            if (gain) {
                doubles p = w * h;
                of = size_doubles(p) + size_doubles(w);
                h = p - w;
            }
            doubles s = add_times_doubles(t, h, w), size = size_doubles(s);
            doubles reach = add_times_doubles(of_change, of, all_doubles(row->least));
            if (rest)
                reach = add_times_doubles(of_rest, size_doubles(*(const loose_doubles *)(rest + at)), reach);
            reach = add_times_doubles(all_doubles(MARGIN), size, reach);
            *fine &= (longs)(size < LIMIT);
            ends[0][half] = s - reach;
            ends[1][half] = s + reach;
        }
        low[n] = VECTOR_TO(joined(ends[0][0], ends[0][1]), joined(ends[1][0], ends[1][1]), &differ[n]);
    }
    PUT(out, low[0], low[1]);
    if (!any_set(differ[0] | differ[1], DIFFERENCE))
        return 0;
    return which_set(differ[0], DIFFERENCE) | which_set(differ[1], DIFFERENCE) << FLOATS;
}

/* Element j, which is open. */
static __attribute__((noinline)) void AGAIN(const change_job *job, size_t a, size_t j)
{
    HELD old = ((const HELD *)job->in)[j];
    double w = FROM(old), h = job->change[j], t = job->times[a], off = job->off[a], error = job->error;
    double l = job->rest ? fabs(job->rest[j]) : 0, lost = 0;
    dd_pair p = {0, 0}, s;
    if (job->gain) {
        dd_pair g = dd_two_product(w, h), d = dd_two_sum(g.high, -w);
        lost = dd_unsafe(w, h, g.high);
        if (t == 1 && off == 0) {
            s = (dd_pair){g.high, 0};
            p.low = g.low;
        } else {
            h = d.high;
            l = fabs(d.low) + fabs(g.low);
        }
    }
    if (!job->gain || t != 1 || off != 0) {
        p = dd_two_product(t, h);
        s = dd_two_sum(w, p.high);
        lost = fabs(t) * lost + dd_unsafe(t, h, p.high);
    }
    uint32_t low, high;
    if (l == 0 && error == 0 && lost == 0 && (off == 0 || h == 0)) {
        double rest, x = rounded_odd(s.high, s.low, p.low, &rest);
        low = ONCE(x != 0 ? x : w == 0 ? w : 0); /* where nothing was added to a zero it keeps its sign */
        high = low ^ (x == 0 && rest != 0);
    } else {
        double lacking = fabs(s.low) + fabs(p.low) + fabs(t) * (l + error) + off * fabs(p.high) + lost;
        double e = lacking * WIDER + 2 * DOUBLE_UNIT * fabs(s.high) + DD_LOST;
        low = ONCE(s.high - e);
        high = ONCE(s.high + e);
    }
    if (low != high || !(fabs(job->change[j]) < 0x1p500)) /* two products of such numbers overflow */
        leave(job, a, j);
    ((HELD *)job->out[a])[j] = STORE(low);
}

/* Returns 0 where an element is too large, or no number. */
static inline __attribute__((always_inline)) int GLUED(each_change, STORED)(const change_job *job, size_t a, int gain,
                                                                            const double *rest)
{
    const HELD *restrict in = job->in;
    HELD *restrict out = job->out[a];
    const double t = job->times[a], size = fabs(t), u = DOUBLE_UNIT;
    const change_row row = {t, size * (4 * u + job->off[a]) * WIDER, size * WIDER,
                            (size * (job->error + DD_LOST) + DD_LOST) * WIDER + LEAST};
    longs fine = ~(longs){0};
    size_t i = 0;
    for (; i + 2 * FLOATS <= job->count; i += 2 * FLOATS)
        for (uint32_t some = TILE(in + i, job->change + i, rest ? rest + i : NULL, out + i, &row, gain, &fine); some;
             some &= some - 1)
            AGAIN(job, a, i + (size_t)__builtin_ctz(some));
    if (i < job->count) {
        HELD old[2 * FLOATS] = {0}, new[2 * FLOATS];
        double change[2 * FLOATS] = {0}, beside[2 * FLOATS] = {0};
        size_t wide = job->count - i;
        memcpy(old, in + i, wide * sizeof *old);
        memcpy(change, job->change + i, wide * sizeof *change);
        if (rest)
            memcpy(beside, rest + i, wide * sizeof *beside);
        uint32_t some = TILE(old, change, rest ? beside : NULL, new, &row, gain, &fine) & (((uint32_t)1 << wide) - 1);
        memcpy(out + i, new, wide * sizeof *new);
        for (; some; some &= some - 1)
            AGAIN(job, a, i + (size_t)__builtin_ctz(some));
    }
    job->changed[a] += GLUED(moved, STORED)(in, out, job->count);
    for (size_t j = (job->every - job->first % job->every) % job->every; j < job->count; j += job->every) {
        double w = FROM(in[j]), delta = t * (gain ? w * job->change[j] - w : job->change[j]);
        job->kept[a] += (FROM(out[j]) - w) * delta;
        job->update[a] += delta * delta;
    }
    return all_set(fine);
}

/* Makes the block. Returns 0 where it cannot. */
int LEVELLED(GLUED(change, STORED))(const change_job *job)
{
    int fine = 1;
    for (size_t a = 0; a < job->alphas && fine; a++)
        if (job->gain)
            fine = GLUED(each_change, STORED)(job, a, 1, NULL);
        else if (job->rest)
            fine = GLUED(each_change, STORED)(job, a, 0, job->rest);
        else
            fine = GLUED(each_change, STORED)(job, a, 0, NULL);
    return fine;
}

#undef FROM
#undef ONCE
#undef TILE
#undef AGAIN
#undef DOUBLES_FROM
#undef VECTOR_TO
