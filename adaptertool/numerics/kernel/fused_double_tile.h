/* sums (HIGH, stride): columns begin..end of HIGH rows of the product, of the numbers `which`; begin is a multiple of
   GROUP, and as many as `end` rounded up to one are written. Included by fused_double.h. */
static void SUMS_OF(const block_job *job, const size_t *which, size_t begin, size_t end, double *sums, size_t stride)
{
    const double *left[HIGH];
    EACH for (int i = 0; i < HIGH; i++) left[i] = job->left_double + which[i] * job->rank;
    for (size_t c = begin; c < end; c += 2 * DOUBLES) {
        const float *panel = panel_at(job, c);
        doubles sum[HIGH][2];
        EACH for (int i = 0; i < HIGH; i++) sum[i][0] = sum[i][1] = all_doubles(0);
        for (size_t k = 0; k < job->rank; k++) {
            doubles near = doubles_at(panel + k * GROUP), far = doubles_at(panel + k * GROUP + DOUBLES);
            EACH for (int i = 0; i < HIGH; i++)
            {
                doubles own = all_doubles(left[i][k]);
                sum[i][0] = add_times_doubles(own, near, sum[i][0]);
                sum[i][1] = add_times_doubles(own, far, sum[i][1]);
            }
        }
        EACH for (int i = 0; i < HIGH; i++)
        {
            *(loose_doubles *)(sums + i * stride + c - begin) = sum[i][0];
            *(loose_doubles *)(sums + i * stride + c - begin + DOUBLES) = sum[i][1];
        }
    }
}
