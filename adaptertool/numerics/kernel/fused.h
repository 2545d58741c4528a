/* A block in one visit: stored numbers widened, the product of two factors added in registers, and the sum rounded,
   with a test that the error of the arithmetic cannot matter. fused.py calls these; without them blocks.py does the same
   in passes over the block, and the bytes are the same.

   x = w + α·Σ_k left_ik·right_kj is computed in float, and known to within e (below). Where x − e and x + e round to one
   stored number, that is the rounding of the exact value. Elsewhere, the same again in double, with a smaller e; and
   where all products and sums are multiples of one power of two that double holds, x is exact and so is its rounding,
   ties included. What is left is told, and decided by others (arithmetic/correct_rounding.py).

   e: sums of up to CHAIN products, and of those sums, make at most CHAIN + rank/CHAIN roundings one after another
   (N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.1), each of at most u relatively to
   Σ|left_ik·right_kj| ≤ ‖left_i‖·‖right_j‖ (Cauchy, Schwarz). Factors are rounded once or twice, and so is α; the sum
   with w once. In which order, and whether product and sum are rounded together, is not counted on, so levels may differ.

   Rows go in strips of TALL, of which the products of some columns are made in registers and put into a part of memory
   that stays in the cache; then each row is rounded from there. */

#define GROUP 16 /* columns of a panel, whatever the length of a vector: a line of the cache */
#define PAD 32   /* columns are as many as this has multiples */
#define CHAIN 16 /* products that are summed before they are added to the sum of those before */
#define FLOAT_UNIT 0x1p-24
#define DOUBLE_UNIT 0x1p-53
#define WIDER (1 + 0x1p-10) /* more than what the few roundings of a bound take away from it */

typedef struct {
    const void *in;            /* rows x columns, as stored */
    void *const *out;          /* for each alpha, the same */
    const double *alpha;       /* none is 0 */
    size_t alphas, rows, columns, rank;
    const float *panels;       /* the right factor (rank, columns) as [columns / GROUP][rank][GROUP], zeros up to PAD */
    const float *right_norm;   /* no column is longer than this; as many as the panels have */
    const double *right_power; /* of two, of which all of a column are multiples; 0 where that is not known */
    double right_length;       /* not below the square root of the sum of all squares of the right factor */
    const double *right_double; /* (columns, rank): the columns, of which the panels are rounded; null: they are exact */
    const float *left;         /* (rows, rank): the left factor times the scale */
    const double *left_double; /* the same */
    const double *left_norm;   /* no row is longer */
    const double *left_power;  /* as of the columns */
    double tiny;               /* more than what underflow takes away from a sum in float, and α times `off` */
    double off;                /* by how much an element of the product is off, of what the factors stand for */
    const double *magnitude;   /* (rows): what stands over the norm; null where no row is divided by its norm */
    double weight;             /* of the change, with a magnitude */
    size_t first, every;       /* rows whose sums are taken: those where first + row is a multiple of `every` */
    int32_t *open;             /* alphas x room: which elements are left */
    size_t room;
    size_t *opened;            /* for each alpha, how many: where that is more than `room`, some are not told */
    size_t *changed;           /* for each alpha, how many are not stored as they were */
    double *kept, *update;     /* for each alpha, sums over some rows of (new - old)·Δ and Δ·Δ, with Δ = α·(the change) */
} block_job;

#define EACH _Pragma("GCC unroll 16")

#include "fused_vectors.h"

/* --- one element again, in double --- */

/* The power of two that is the lowest bit of a number; infinity for 0, which is a multiple of all. */
static inline double lowest(double x)
{
    int exponent;
    uint64_t bits = (uint64_t)fabs(frexp(x, &exponent) * 0x1p53);
    return x == 0 ? INFINITY : ldexp(1.0, exponent - 53 + __builtin_ctzll(bits | 1ull << 53));
}

/* The right factor from column c on: a line of GROUP columns for each k. */
static inline const float *panel_at(const block_job *job, size_t c)
{
    return job->panels + c / GROUP * GROUP * job->rank + c % GROUP;
}

#define SEVERAL 64 /* numbers of a column */

/* w + α·(row i of the left factor times column j of the right), and e: 0 where that is exact. */
static __attribute__((noinline)) double again(const block_job *job, size_t i, size_t j, double w, double alpha,
                                              double *error)
{
    const float *column = panel_at(job, j);
    const double *row = job->left_double + i * job->rank;
    const double *whole = job->right_double ? job->right_double + j * job->rank : NULL;
    doubles sums[2] = {{0}, {0}};
    float near[SEVERAL]; /* first all are fetched, each from a line of its own, and then multiplied */
    size_t done = 0;
    for (; whole && done + 2 * DOUBLES <= job->rank; done += 2 * DOUBLES)
        for (size_t v = 0; v < 2; v++)
            sums[v] = add_times_doubles(*(const loose_doubles *)(row + done + v * DOUBLES),
                                        *(const loose_doubles *)(whole + done + v * DOUBLES), sums[v]);
    for (; whole && done < job->rank; done++)
        sums[0][0] += row[done] * whole[done];
    for (size_t k = done; k < job->rank; k += SEVERAL) {
        size_t count = job->rank - k < SEVERAL ? job->rank - k : SEVERAL, n = 0;
        for (size_t m = 0; m < count; m++)
            near[m] = column[(k + m) * GROUP];
        for (; n + 2 * DOUBLES <= count; n += 2 * DOUBLES)
            for (size_t v = 0; v < 2; v++)
                sums[v] = add_times_doubles(*(const loose_doubles *)(row + k + n + v * DOUBLES),
                                            doubles_at(near + n + v * DOUBLES), sums[v]);
        for (; n < count; n++)
            sums[0][0] += row[k + n] * near[n];
    }
    double sum = 0;
    for (size_t v = 0; v < DOUBLES; v++)
        sum += sums[0][v] + sums[1][v];
    double most = job->left_norm[i] * job->right_norm[j] * fabs(alpha) * WIDER, x = w + alpha * sum;
    double power = job->left_power[i] * job->right_power[j];
    *error = ((double)job->rank + 6) * DOUBLE_UNIT * most + 4 * DOUBLE_UNIT * fabs(x) + 0x1p-1060;
    *error += fabs(alpha) * job->off * WIDER;
    if (power > 0 && job->off == 0 && most + fabs(w) < 0x1p53 * fmin(power * lowest(alpha), lowest(w)))
        *error = 0;
    return x;
}

/* An element that is left: its place is noted. `job` is any that has `open`, `room` and `opened`. */
#define leave(job, a, place) note_left((job)->open + (a) * (job)->room, (job)->room, (job)->opened + (a), place)

static inline void note_left(int32_t *open, size_t room, size_t *opened, size_t place)
{
    size_t found = (*opened)++;
    if (found < room)
        open[found] = (int32_t)place;
}

/* Rows whose sums stay in registers, with two vectors of columns each. */
#if VECTOR == 64
#define TALL 12
#else
#define TALL 6
#endif

/* The numbers of the next rows of which something changes, from *row on, at most TALL. Returns how many. */
static inline size_t next_rows(const block_job *job, size_t *row, size_t *which)
{
    size_t found = 0;
    for (; *row < job->rows && found < TALL; ++*row)
        if (job->left_norm[*row] > 0)
            which[found++] = *row;
    return found;
}

#define MOST_ALPHAS 8 /* as callers have it */
#define LINE 64       /* bytes of the cache */

/* What a row of 16-bit numbers is made with: α, its part of e for a column of length 1, and what is added to that. */
typedef struct {
    floats times, error, unit, tiny;
} row_16;

#include "fused_float_tile.h"

#define STORED BF16
#define LIMIT 0x1p126f
#define DIFFERENCE 0xFFFF0000
#include "fused_float.h"
#undef STORED
#undef LIMIT
#undef DIFFERENCE
#define STORED F16
#define LIMIT 0x1p15f
#define DIFFERENCE 0xFFFF
#include "fused_float.h"
#undef STORED
#undef LIMIT
#undef DIFFERENCE

#include "fused_double.h"
