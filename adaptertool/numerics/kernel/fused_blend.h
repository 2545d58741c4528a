/* w + α·(t − w) of two stored numbers, exactly, and rounded once: included by fused_double.h once for each dtype, STORED.
   Where there is IN_FLOAT, that is tried first.

   d = t − w is exact, or the element is left. With p = fl(α·d) and its error q, which is a double, the value is
   w + p + q, which is rounded by way of a double that rounds as it does (rounded_odd).
   Sources: D. Knuth, TAOCP 2, 4.2.2 (two-sum); T. Dekker, "A floating-point technique for extending the available
   precision", 1971; the renormalisation is that of Y. Hida, X. Li, D. Bailey, "Quad-double arithmetic", 2001. */

#define FROM GLUED(from, STORED)
#define TO GLUED(once_to, STORED)
#define EXACTLY GLUED(blend_exactly, STORED)
#define MIXED GLUED(mixed, STORED)

/* Mixes `count` elements, at most LOOK; left[j] = whether the bytes of element j may be wrong. Returns whether any is left,
   and lowers *fine to 0 where a number is too large, or none. */
static __attribute__((noinline)) uint32_t EXACTLY(const HELD *restrict in, const HELD *restrict tuned, double alpha,
                                                  size_t count, HELD *restrict out, uint32_t *restrict left, int *fine)
{
    uint32_t any = 0;
    int32_t usual = -1;
    for (size_t j = 0; j < count; j++) {
        double w = FROM(in[j]), t = FROM(tuned[j]);
        dd_pair d = dd_two_sum(t, -w), p = dd_two_product(alpha, d.high);
        dd_pair sum = dd_two_sum(w, p.high);
        double rest, s = rounded_odd(sum.high, sum.low, p.low, &rest);
        double x = s != 0 ? s : w == 0 ? w : 0; /* where nothing was added to a zero it keeps its sign */
        left[j] = (uint32_t)(d.low != 0) | (uint32_t)((s == 0) & (rest != 0));
        any |= left[j];
        usual &= -(int32_t)(fabs(w) < LIMIT) & -(int32_t)(fabs(t) < LIMIT) & -(int32_t)(fabs(x) < LIMIT);
        out[j] = STORE(TO(x));
    }
    *fine &= usual;
    return any;
}

/* Elements first..first + count, at most PART, at the α of number a. Returns 0 where it cannot. */
static int MIXED(const blend_job *job, size_t a, size_t first, size_t count)
{
    const HELD *in = (const HELD *)job->in + first, *tuned = (const HELD *)job->tuned + first;
    HELD *out = (HELD *)job->out[a] + first;
    uint32_t left[LOOK];
    int fine = -1;
#ifdef IN_FLOAT
    uint16_t open[PART], from[LOOK], to[LOOK], found[LOOK];
    words largest = {0};
    size_t some = IN_FLOAT(in, tuned, job->alpha[a], count, out, open, &largest);
    for (size_t c = 0; c < some; c += LOOK) {
        size_t now = some - c < LOOK ? some - c : LOOK;
        for (size_t j = 0; j < now; j++) {
            from[j] = in[open[c + j]];
            to[j] = tuned[open[c + j]];
        }
        uint32_t any = EXACTLY(from, to, job->alpha[a], now, found, left, &fine);
        for (size_t j = 0; j < now; j++) {
            out[open[c + j]] = found[j];
            if (any && left[j])
                leave(job, a, first + open[c + j]);
        }
    }
    fine &= any_set((words)(largest >= bits_of(LIMIT)), ~0u) - 1;
#else
    for (size_t c = 0; c < count; c += LOOK) {
        size_t now = count - c < LOOK ? count - c : LOOK;
        if (EXACTLY(in + c, tuned + c, job->alpha[a], now, out + c, left, &fine))
            for (size_t j = 0; j < now; j++)
                if (left[j])
                    leave(job, a, first + c + j);
    }
#endif
    job->changed[a] += GLUED(moved, STORED)(in, out, count);
    return fine;
}

/* Makes the block. Returns 0 where an element is too large, or no number. */
int LEVELLED(GLUED(blend, STORED))(const blend_job *job)
{
    int fine = -1;
    for (size_t a = 0; a < job->alphas; a++) {
        for (size_t first = 0; first < job->count; first += PART)
            fine &= MIXED(job, a, first, job->count - first < PART ? job->count - first : PART);
        const HELD *in = job->in, *tuned = job->tuned, *out = job->out[a];
        for (size_t j = (job->every - job->first % job->every) % job->every; j < job->count; j += job->every) {
            double w = FROM(in[j]), delta = job->alpha[a] * (FROM(tuned[j]) - w);
            job->kept[a] += (FROM(out[j]) - w) * delta;
            job->update[a] += delta * delta;
        }
    }
    return fine != 0;
}

#undef FROM
#undef TO
#undef EXACTLY
#undef MIXED
#undef IN_FLOAT
#undef STORED
#undef DIFFERENCE
#undef LIMIT
