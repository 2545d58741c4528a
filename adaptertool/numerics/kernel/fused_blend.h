/* w + α·(t − w) of two stored numbers, exactly, and rounded once: included by fused.h once for each dtype, STORED.

   d = t − w is exact, or the element is left. With p = fl(α·d) and its error q, which is a double, the value is
   w + p + q, which is rounded by way of a double that rounds as it does (rounded_odd).
   Sources: D. Knuth, TAOCP 2, 4.2.2 (two-sum); T. Dekker, "A floating-point technique for extending the available
   precision", 1971; the renormalisation is that of Y. Hida, X. Li, D. Bailey, "Quad-double arithmetic", 2001. */

#define FROM GLUED(from, STORED)
#define TO GLUED(once_to, STORED)

/* Makes the block. Returns 0 where an element is too large, or no number. */
int LEVELLED(GLUED(blend, STORED))(const blend_job *job)
{
    const HELD *restrict in = job->in, *restrict tuned = job->tuned;
    int32_t fine = -1;
    for (size_t a = 0; a < job->alphas; a++) {
        HELD *restrict out = job->out[a];
        const double alpha = job->alpha[a];
        for (size_t first = 0; first < job->count; first += LOOK) {
            uint32_t left[LOOK], any = 0, moved = 0;
            size_t count = job->count - first < LOOK ? job->count - first : LOOK;
            for (size_t j = 0; j < count; j++) {
                double w = FROM(in[first + j]), t = FROM(tuned[first + j]);
                dd_pair d = dd_two_sum(t, -w), p = dd_two_product(alpha, d.high);
                dd_pair sum = dd_two_sum(w, p.high);
                double rest, s = rounded_odd(sum.high, sum.low, p.low, &rest);
                double x = s != 0 ? s : w == 0 ? w : 0; /* where nothing was added to a zero it keeps its sign */
                uint32_t low = TO(x);
                left[j] = (uint32_t)(d.low != 0) | (uint32_t)((s == 0) & (rest != 0));
                any |= left[j];
                moved += low != BITS(in[first + j]);
                fine &= -(int32_t)(fabs(w) < LIMIT) & -(int32_t)(fabs(t) < LIMIT) & -(int32_t)(fabs(x) < LIMIT);
                out[first + j] = STORE(low);
            }
            job->changed[a] += moved;
            if (any)
                for (size_t j = 0; j < count; j++)
                    if (left[j]) {
                        size_t found = job->opened[a]++;
                        if (found < job->room)
                            job->open[a * job->room + found] = (int32_t)(first + j);
                    }
        }
        for (size_t j = (job->every - job->first % job->every) % job->every; j < job->count; j += job->every) {
            double w = FROM(in[j]), delta = alpha * (FROM(tuned[j]) - w);
            job->kept[a] += (FROM(out[j]) - w) * delta;
            job->update[a] += delta * delta;
        }
    }
    return fine != 0;
}

#undef FROM
#undef TO
#undef STORED
#undef DIFFERENCE
#undef LIMIT
