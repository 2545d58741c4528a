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
        *(loose_floats *)(to + v * FLOATS) = VECTOR_FROM(*(const loose_halves *)(from + v * FLOATS));
}

/* The sums over row i. */
static __attribute__((noinline)) void SUMS(const block_job *job, size_t i)
{
    for (size_t c = 0; c < job->columns; c += GROUP) {
        const float *panel = job->panels + c * job->rank, *row = job->left + i * job->rank;
        size_t wide = job->columns - c < GROUP ? job->columns - c : GROUP, place = i * job->columns + c;
        float old[GROUP], new[GROUP], change[GROUP];
        floats sum[GROUP / FLOATS] = {0};
        for (size_t k = 0; k < job->rank; k++)
            EACH for (int v = 0; v < GROUP / FLOATS; v++)
                sum[v] += all_floats(row[k]) * *(const loose_floats *)(panel + k * GROUP + v * FLOATS);
        EACH for (int v = 0; v < GROUP / FLOATS; v++)
            *(loose_floats *)(change + v * FLOATS) = sum[v];
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

#define TILE GLUED(usual_tile, STORED)
#define HIGH TALL
#define WHOLE 1
#define ONE 1
#include "fused_float_tile.h"
#undef TILE
#undef ONE
#define TILE GLUED(tall_tile, STORED)
#define ONE 0
#include "fused_float_tile.h"
#undef TILE
#undef HIGH
#undef WHOLE
#define TILE GLUED(low_tile, STORED)
#define HIGH 1
#define WHOLE 0
#include "fused_float_tile.h"
#undef TILE
#undef HIGH
#undef WHOLE
#undef ONE

/* Makes the block. Returns 0 where it cannot: a number is not finite, or as large as LIMIT, or too many α. */
int LEVELLED(GLUED(lora, STORED))(const block_job *job)
{
    checks_16 checks = {.fine = ~(words){0}};
    size_t at_once = columns_at_once(job->rank), which[TALL], high;
    size_t roundings = (job->rank < CHAIN ? job->rank : CHAIN) + (job->rank + CHAIN - 1) / CHAIN + 2;
    if (job->alphas > MOST_ALPHAS)
        return 0;
    for (size_t a = 0; a < job->alphas; a++) {
        checks.times[a] = (float)job->alpha[a];
        checks.error[a] = (float)(fabs(job->alpha[a]) * (double)(roundings + (job->alpha[a] == 1 ? 0 : 2)) * FLOAT_UNIT * WIDER);
    }
    size_t tiles = (job->columns + 2 * FLOATS - 1) / (2 * FLOATS), moved = 0;
    for (size_t i = 0; i < job->rows; i++) {
        moved += job->left_norm[i] > 0;
        if (!(job->left_norm[i] > 0) && !COPY(job, i))
            return 0;
    }
    for (size_t a = 0; a < job->alphas; a++)
        job->changed[a] += moved * tiles * 2 * FLOATS; /* less those that are found to be the same */
    for (size_t begin = 0; begin < job->columns; begin += at_once) {
        size_t end = begin + at_once < job->columns ? begin + at_once : job->columns;
        for (size_t row = 0; (high = next_rows(job, &row, which)) > 0;)
            for (size_t c = begin; c < end; c += 2 * FLOATS) {
                size_t wide = end - c < 2 * FLOATS ? end - c : 2 * FLOATS;
                int usual = high == TALL && wide == 2 * FLOATS;
                if (usual && job->alphas == 1)
                    GLUED(usual_tile, STORED)(job, which, c, wide, &checks);
                else if (usual)
                    GLUED(tall_tile, STORED)(job, which, c, wide, &checks);
                else
                    for (size_t i = 0; i < high; i++)
                        GLUED(low_tile, STORED)(job, which + i, c, wide, &checks);
            }
    }
    for (size_t a = 0; a < job->alphas; a++)
        for (int v = 0; v < FLOATS; v++)
            job->changed[a] -= (size_t)-checks.same[a][v];
    for (size_t i = (job->every - job->first % job->every) % job->every; i < job->rows; i += job->every)
        SUMS(job, i);
    return !any_set(~checks.fine);
}

#undef FROM
#undef ONCE
#undef VECTOR_FROM
#undef VECTOR_TO
#undef AGAIN
#undef WIDENED
#undef SUMS
#undef COPY
