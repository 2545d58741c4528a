/* LoRA on weights of 16 bits, in float: included by fused.h once for each dtype, STORED, with its LIMIT: what is larger
   is left to others. */

#define FROM GLUED(from, STORED)
#define ONCE GLUED(once_to, STORED)
#define VECTOR_FROM GLUED(vector_from, STORED)
#define VECTOR_TO GLUED(vector_to, STORED)
#define AGAIN GLUED(again, STORED)
#define WIDENED GLUED(widened, STORED)
#define SUMS GLUED(sums, STORED)
#define COPY GLUED(copy, STORED)
#define TILE GLUED(tile, STORED)
#define ROW GLUED(row, STORED)
#define STRIP GLUED(strip, STORED)
#define FETCH GLUED(fetch, STORED)

/* Element (i, j), which float left open. */
static __attribute__((noinline)) void AGAIN(const block_job *job, size_t a, size_t i, size_t j, uint16_t old,
                                            uint16_t *out)
{
    double error, w = FROM(old), x = again(job, i, j, w, job->alpha[a], &error);
    uint32_t low = ONCE(x - error), high = ONCE(x + error);
    if (error == 0 && x == 0)
        low = w == 0 ? old : 0; /* where nothing was added to a zero it keeps its sign */
    else if (low != high)
        leave(job, a, i * job->columns + j);
    job->changed[a] += (size_t)((uint16_t)low != old) - (size_t)(*out != old);
    *out = (uint16_t)low;
}

/* Row i is what it was, for nothing is added to it. Returns 0 where it holds what is too large, or no number. */
static int COPY(const block_job *job, size_t i)
{
    const uint16_t *old = (const uint16_t *)job->in + i * job->columns;
    int fine = 1;
    for (size_t j = 0; j < job->columns; j++)
        fine &= fabsf(FROM(old[j])) < LIMIT;
    for (size_t a = 0; a < job->alphas; a++)
        memcpy((uint16_t *)job->out[a] + i * job->columns, old, job->columns * sizeof *old);
    return fine;
}

/* GROUP stored numbers, of which `wide` are there, as floats; zeros after them. */
static inline void WIDENED(const uint16_t *from, size_t wide, float *to)
{
    uint16_t padded[GROUP] = {0};
    if (wide < GROUP)
        from = memcpy(padded, from, wide * sizeof *from);
    EACH for (int v = 0; v < GROUP / FLOATS; v++)
        *(loose_floats *)(to + v * FLOATS) = VECTOR_FROM(from + v * FLOATS);
}

/* The sums over row i. */
static __attribute__((noinline)) void SUMS(const block_job *job, size_t i)
{
    float changes[SUMMED * GROUP];
    for (size_t c = 0; c < job->columns; c += GROUP) {
        size_t wide = job->columns - c < GROUP ? job->columns - c : GROUP, place = i * job->columns + c;
        float old[GROUP], new[GROUP], *change = changes + c % (SUMMED * GROUP);
        if (change == changes)
            products_of_row(job, i, c, changes);
        WIDENED((const uint16_t *)job->in + place, wide, old);
        for (size_t a = 0; a < job->alphas; a++) {
            double kept = 0, update = 0, left[GROUP], wanted[GROUP];
            WIDENED((const uint16_t *)job->out[a] + place, wide, new);
            EACH for (int v = 0; v < GROUP / DOUBLES; v++)
            {
                doubles delta = all_doubles(job->alpha[a]) * doubles_at(change + v * DOUBLES);
                doubles moved = doubles_at(new + v * DOUBLES) - doubles_at(old + v * DOUBLES);
                *(loose_doubles *)(left + v * DOUBLES) = moved * delta;
                *(loose_doubles *)(wanted + v * DOUBLES) = delta * delta;
            }
            EACH for (int j = 0; j < GROUP; j++)
            {
                kept += left[j];
                update += wanted[j];
            }
            job->kept[a] += kept;
            job->update[a] += update;
        }
    }
}

/* 2·FLOATS elements from `in` to `out`, in which nothing else lies: returns which of them are open. */
static inline __attribute__((always_inline)) uint32_t TILE(const uint16_t *in, const float *sums, const float *norm,
                                                           uint16_t *out, const row_16 *row, words *largest,
                                                           counts *same)
{
    words low[2], differ[2];
    EACH for (int v = 0; v < 2; v++)
    {
        floats product = *(const loose_floats *)(sums + v * FLOATS), column = *(const loose_floats *)(norm + v * FLOATS);
        floats x = add_times_floats(row->times, product, VECTOR_FROM(in + v * FLOATS)), size = size_floats(x);
        floats reach = add_times_floats(row->error, column, add_times_floats(row->unit, size, row->tiny));
        low[v] = VECTOR_TO(x - reach, x + reach, &differ[v]);
        *largest = larger_of(*largest, (words)size);
    }
    counts both = packed(low[0], low[1]);
    *same += (counts)(both == *(const loose_counts *)in);
    *(loose_counts *)out = both;
    if (!any_set(differ[0] | differ[1], DIFFERENCE))
        return 0;
    return which_set(differ[0], DIFFERENCE) | which_set(differ[1], DIFFERENCE) << FLOATS;
}

/* Row i at the α of number a, columns begin..begin + wide, of which `sums` are the product. `largest` is raised to the
   bits of the largest magnitude. */
static void ROW(const block_job *job, size_t a, size_t i, size_t begin, size_t wide, const float *sums, words *largest)
{
    const uint16_t *old = (const uint16_t *)job->in + i * job->columns + begin;
    uint16_t *out = (uint16_t *)job->out[a] + i * job->columns + begin, left[FLOAT_COLUMNS];
    const float *norm = job->right_norm + begin;
    const row_16 row = {all_floats((float)job->alpha[a]), all_floats((float)(of_sums(job, a) * job->left_norm[i])),
                        all_floats((float)(3 * FLOAT_UNIT * WIDER)), all_floats((float)job->tiny)};
    words most = *largest;
    counts same = {0}; /* minus how many are stored as they were */
    size_t open = 0, c = 0;
    for (; c + 2 * FLOATS <= wide; c += 2 * FLOATS)
        for (uint32_t some = TILE(old + c, sums + c, norm + c, out + c, &row, &most, &same); some; some &= some - 1)
            left[open++] = (uint16_t)(c + (size_t)__builtin_ctz(some));
    if (c < wide) {
        uint16_t in[2 * FLOATS], found[2 * FLOATS];
        for (size_t j = 0; j < 2 * FLOATS; j++)
            in[j] = c + j < wide ? old[c + j] : 0x3C00; /* neither tiny nor large, and it stays */
        uint32_t some = TILE(in, sums + c, norm + c, found, &row, &most, &same) & (((uint32_t)1 << (wide - c)) - 1);
        for (; some; some &= some - 1) /* none of those that are not there, which what is `off` may leave open as well */
            left[open++] = (uint16_t)(c + (size_t)__builtin_ctz(some));
        memcpy(out + c, found, (wide - c) * sizeof *out);
        c += 2 * FLOATS;
    }
    *largest = most;
    job->changed[a] += c;
    for (int j = 0; j < 2 * FLOATS; j++)
        job->changed[a] -= (uint16_t)-same[j];
    for (size_t n = 0; n < open; n++)
        AGAIN(job, a, i, begin + left[n], old[left[n]], out + left[n]);
}

/* Begins to fetch a part of row i: it lies apart from that of the row before, so the processor does not foresee it. */
static inline void FETCH(const block_job *job, size_t i, size_t begin, size_t wide)
{
    const uint16_t *in = (const uint16_t *)job->in + i * job->columns + begin;
    uint16_t *out = (uint16_t *)job->out[0] + i * job->columns + begin;
    for (size_t c = 0; c < wide; c += LINE / sizeof *in) {
        __builtin_prefetch(in + c);
        __builtin_prefetch(out + c, 1);
    }
}

/* The rows of a strip, the numbers `which`, in columns begin..begin + wide: `left` are those of the left factor. */
static void STRIP(const block_job *job, const size_t *which, size_t high, const float *left, size_t begin, size_t wide,
                  words *largest)
{
    float sums[TALL * FLOAT_COLUMNS];
    FETCH(job, which[0], begin, wide);
    float_sums(job, left, begin, begin + wide, sums);
    for (size_t i = 0; i < high; i++) {
        if (i + 1 < high)
            FETCH(job, which[i + 1], begin, wide);
        for (size_t a = 0; a < job->alphas; a++)
            ROW(job, a, which[i], begin, wide, sums + i * FLOAT_COLUMNS, largest);
    }
}

/* Makes the block. Returns 0 where it cannot: a number is not finite, or as large as LIMIT. */
int LEVELLED(GLUED(lora, STORED))(const block_job *job)
{
    words largest = {0};
    size_t at_once = columns_at_once(job->rank), moved = 0, wide;
    size_t *which = malloc((job->rows + TALL) * sizeof *which);
    float *left = malloc((job->rows + TALL) * (job->rank + 1) * sizeof *left);
    int fine = which && left;
    for (size_t i = 0; i < job->rows && fine; i++)
        if (job->left_norm[i] > 0)
            which[moved++] = i;
        else
            fine = COPY(job, i);
    if (fine)
        strips_of(job, which, moved, left);
    for (size_t begin = 0; begin < job->columns && fine; begin += at_once) {
        size_t end = begin + at_once < job->columns ? begin + at_once : job->columns;
        for (size_t i = 0; i < moved; i += TALL)
            for (size_t c = begin; c < end; c += wide) {
                wide = end - c < FLOAT_COLUMNS ? end - c : FLOAT_COLUMNS;
                STRIP(job, which + i, moved - i < TALL ? moved - i : TALL, left + i * job->rank, c, wide, &largest);
            }
    }
    free(left);
    free(which);
    for (size_t i = (job->every - job->first % job->every) % job->every; i < job->rows && fine; i += job->every)
        SUMS(job, i);
    return fine && !any_set((words)(largest >= bits_of(LIMIT)), ~0u);
}

#undef FROM
#undef ONCE
#undef VECTOR_FROM
#undef VECTOR_TO
#undef AGAIN
#undef WIDENED
#undef SUMS
#undef COPY
#undef TILE
#undef ROW
#undef STRIP
#undef FETCH
