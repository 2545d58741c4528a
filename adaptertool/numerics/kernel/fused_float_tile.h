/* Products in float, for weights of 16 bits: a part at a time, which stays in the cache. Included by fused.h. */

#define SUMMED 4 /* groups of columns of which the sums of a tally are taken at once */
#define FLOAT_COLUMNS 256 /* that are computed at once */

/* Columns begin..end of TALL rows of the product, in float: sums (TALL, FLOAT_COLUMNS). `left` (rank, TALL) are the rows side
   by side; begin is a multiple of PAD, and as many as `end` rounded up to 2·FLOATS are written. */
static __attribute__((noinline)) void float_sums(const block_job *job, const float *left, size_t begin, size_t end,
                                                 float *sums)
{
    const size_t rank = job->rank;
    for (size_t c = begin; c < end; c += 2 * FLOATS, sums += 2 * FLOATS) {
        const float *near_panel = panel_at(job, c), *far_panel = panel_at(job, c + FLOATS), *own = left;
        for (size_t k = 0; k < rank;) {
            const size_t first = k, last = k + CHAIN < rank ? k + CHAIN : rank;
            floats sum[TALL][2];
            EACH for (int i = 0; i < TALL; i++) sum[i][0] = sum[i][1] = all_floats(0);
            _Pragma("GCC unroll 4") for (; k < last; k++, own += TALL)
            {
                floats near = *(const loose_floats *)near_panel, far = *(const loose_floats *)far_panel;
                near_panel += GROUP, far_panel += GROUP;
                EACH for (int i = 0; i < TALL; i++)
                {
                    floats one = all_floats(own[i]);
                    sum[i][0] = add_times_floats(one, near, sum[i][0]);
                    sum[i][1] = add_times_floats(one, far, sum[i][1]);
                }
            }
            EACH for (int i = 0; i < TALL; i++)
                EACH for (int v = 0; v < 2; v++)
                {
                    loose_floats *to = (loose_floats *)(sums + i * FLOAT_COLUMNS + v * FLOATS);
                    if (first)
                        sum[i][v] += *to;
                    *to = sum[i][v];
                }
        }
    }
}

/* changes = SUMMED groups of columns of row i of the product, from c on, where there are so many: the same at all levels
   of instructions, since what a tally tells is made of them. */
static void products_of_row(const block_job *job, size_t i, size_t c, float *changes)
{
    const float *row = job->left + i * job->rank, *panels[SUMMED];
    floats sum[SUMMED][GROUP / FLOATS];
    EACH for (size_t g = 0; g < SUMMED; g++)
    {
        panels[g] = panel_at(job, c + g * GROUP < job->columns ? c + g * GROUP : c);
        EACH for (int v = 0; v < GROUP / FLOATS; v++) sum[g][v] = all_floats(0);
    }
    for (size_t k = 0; k < job->rank; k++)
        EACH for (size_t g = 0; g < SUMMED; g++)
            EACH for (int v = 0; v < GROUP / FLOATS; v++)
                sum[g][v] += all_floats(row[k]) * *(const loose_floats *)(panels[g] + k * GROUP + v * FLOATS);
    EACH for (size_t g = 0; g < SUMMED; g++)
        EACH for (int v = 0; v < GROUP / FLOATS; v++)
            *(loose_floats *)(changes + g * GROUP + v * FLOATS) = sum[g][v];
}

/* How far α times a sum of products is off, at most, for a row and a column of length 1. */
static inline double of_sums(const block_job *job, size_t a)
{
    double alpha = job->alpha[a];
    size_t roundings = (job->rank < CHAIN ? job->rank : CHAIN) + (job->rank + CHAIN - 1) / CHAIN + 2 + (job->right_double != NULL);
    return fabs(alpha) * (double)(roundings + (alpha == 1 ? 0 : 2)) * FLOAT_UNIT * WIDER;
}

/* left = the rows `which` of the left factor as float_sums has them, TALL after TALL; zeros for those that the last
   lacks. */
static void strips_of(const block_job *job, const size_t *which, size_t count, float *left)
{
    for (size_t first = 0; first < count; first += TALL)
        for (size_t i = 0; i < TALL; i++) {
            const float *row = first + i < count ? job->left + which[first + i] * job->rank : NULL;
            for (size_t k = 0; k < job->rank; k++)
                left[(first * job->rank) + k * TALL + i] = row ? row[k] : 0;
        }
}

/* Columns of which the panels stay in the cache. */
static inline size_t columns_at_once(size_t rank)
{
    size_t columns = 128 * 1024 / (sizeof(float) * (rank + 1)) / PAD * PAD;
    return columns < PAD ? PAD : columns;
}
