/* LoRA on float32, and DoRA, in double: the product goes through a part of memory that stays in the cache. Included by
   fused.h. */

#define AT_ONCE 512 /* columns */

#define SUMS_OF tall_sums
#define HIGH TALL
#include "fused_double_tile.h"
#undef SUMS_OF
#undef HIGH
#define SUMS_OF low_sums
#define HIGH 1
#include "fused_double_tile.h"
#undef SUMS_OF
#undef HIGH

/* sums (high, stride): columns begin..end of the product, of the rows `which`. Rounded up to GROUP they are there. */
static void products(const block_job *job, const size_t *which, size_t high, size_t begin, size_t end, double *sums,
                     size_t stride)
{
    if (high == TALL)
        tall_sums(job, which, begin, end, sums, stride);
    else
        for (size_t i = 0; i < high; i++)
            low_sums(job, which + i, begin, end, sums + i * stride, stride);
}

/* Whether row i is one of those whose sums are taken. */
static inline int sampled(const block_job *job, size_t i) { return (job->first + i) % job->every == 0; }

/* --- LoRA on float32 --- */

/* Element (i, j), which is open. */
static __attribute__((noinline)) void again_F32(const block_job *job, size_t a, size_t i, size_t j, float old, float *out)
{
    double error, x = again(job, i, j, old, job->alpha[a], &error);
    float low = (float)(x - error), high = (float)(x + error);
    if (error == 0 && x == 0)
        low = old == 0 ? old : 0; /* where nothing was added to a zero it keeps its sign */
    else if (bits_of(low) != bits_of(high))
        leave(job, a, i * job->columns + j);
    job->changed[a] += (size_t)(bits_of(low) != bits_of(old)) - (size_t)(bits_of(*out) != bits_of(old));
    *out = low;
}

/* Row i, columns begin..end, of which `sums` are the product. Returns 0 where one is too large, or no number. */
static int row_F32(const block_job *job, size_t a, size_t i, size_t begin, size_t end, const double *restrict sums)
{
    const float *restrict in = (const float *)job->in + i * job->columns + begin;
    const float *restrict norm = job->right_norm + begin;
    const double *restrict power = job->right_power + begin;
    float *restrict out = (float *)job->out[a] + i * job->columns + begin;
    double alpha = job->alpha[a], most = job->left_norm[i] * fabs(alpha) * WIDER, unit = 4 * DOUBLE_UNIT * WIDER;
    double own = job->left_power[i] * lowest(alpha) * 0x1p53, relative = ((double)job->rank + 6) * DOUBLE_UNIT * most;
    int32_t fine = -1;
    size_t changed = 0;
    own = own < 0x1p900 ? own : 0x1p900;
    for (size_t first = 0; first < end - begin; first += LOOK) {
        uint32_t differ[LOOK], any = 0, moved = 0;
        size_t count = end - begin - first < LOOK ? end - begin - first : LOOK;
        for (size_t j = 0; j < count; j++) {
            double w = in[first + j], x = w + alpha * sums[first + j], size = fabs(x), column = norm[first + j];
            double reach = relative * column + unit * size + 0x1p-1060;
            float low = (float)(x - reach), high = (float)(x + reach), near = (float)x;
            uint64_t bits;
            memcpy(&bits, &w, 8);
            bits &= 0x7FF0000000000000; /* the power of two below |w|; 0 for 0 */
            double last;
            memcpy(&last, &bits, 8);
            last *= 0x1p30; /* 2^53 units in the last place of a float */
            double known = own * power[first + j], least = last < known ? last : known;
            int exact = most * column + fabs(w) < least;
            low = exact ? near : low;
            differ[j] = exact ? 0 : bits_of(low) ^ bits_of(high);
            any |= differ[j];
            moved += bits_of(low) != bits_of(in[first + j]);
            fine &= -(int32_t)(size < 0x1p126);
            out[first + j] = low;
        }
        changed += moved;
        if (any)
            for (size_t j = 0; j < count; j++)
                if (differ[j])
                    again_F32(job, a, i, begin + first + j, in[first + j], out + first + j);
    }
    job->changed[a] += changed;
    if (sampled(job, i))
        for (size_t j = 0; j < end - begin; j++) {
            double delta = alpha * sums[j];
            job->kept[a] += ((double)out[j] - (double)in[j]) * delta;
            job->update[a] += delta * delta;
        }
    return fine;
}

/* Makes the block. Returns 0 where it cannot: a number is too large, or none. */
int LEVELLED(lora_F32)(const block_job *job)
{
    double sums[TALL * AT_ONCE];
    size_t which[TALL], high;
    int fine = 1;
    for (size_t i = 0; i < job->rows; i++)
        if (!(job->left_norm[i] > 0)) {
            const float *old = (const float *)job->in + i * job->columns;
            for (size_t j = 0; j < job->columns; j++)
                fine &= fabsf(old[j]) < 0x1p126f;
            for (size_t a = 0; a < job->alphas; a++)
                memcpy((float *)job->out[a] + i * job->columns, old, job->columns * sizeof *old);
        }
    for (size_t begin = 0; begin < job->columns; begin += AT_ONCE) {
        size_t end = begin + AT_ONCE < job->columns ? begin + AT_ONCE : job->columns;
        for (size_t row = 0; (high = next_rows(job, &row, which)) > 0;) {
            products(job, which, high, begin, end, sums, AT_ONCE);
            for (size_t i = 0; i < high; i++)
                for (size_t a = 0; a < job->alphas; a++)
                    fine &= row_F32(job, a, which[i], begin, end, sums + i * AT_ONCE) != 0;
        }
    }
    return fine;
}

/* --- DoRA, the mixture of two checkpoints, and changes that are there --- */

typedef struct {
    const void *in, *tuned; /* count, as stored */
    void *const *out;       /* for each alpha, the same */
    const double *alpha;    /* none is 0 or 1 */
    size_t alphas, count;
    size_t first, every;    /* elements whose sums are taken: those where first + place is a multiple of `every` */
    int32_t *open;          /* as in block_job */
    size_t room;
    size_t *opened, *changed;
    double *kept, *update;
} blend_job;

#define PART 4096 /* elements of a mixture that stay in the cache */

/* What a mixture is made with in float: α = near ± rest, and what stands in its bound (fused_blend_float.h). */
typedef struct {
    floats near, rest, more, wider, unit, tiny, small;
} blend_16;

static inline blend_16 blended_by(double alpha)
{
    float near = (float)alpha, rest = (float)fabs(alpha - near), size = fabsf(near);
    return (blend_16){
        .near = all_floats(near),
        .rest = all_floats(rest),
        .more = all_floats(size > 1 ? size : 1), /* not α itself, with which the product might be lost */
        .wider = all_floats((float)WIDER),
        .unit = all_floats((float)(2 * FLOAT_UNIT * WIDER)),
        .tiny = all_floats(0x1p-140f),
        .small = all_floats(0x1p-80f), /* of a larger p, q and rest·d are not lost */
    };
}

/* Float64 numbers that are added to stored ones, or multiplied with them: see fused_change.h. */
typedef struct {
    const void *in;
    void *const *out;
    const double *times, *off; /* t for each alpha, none 0, and by how much of itself it may be off */
    size_t alphas, count;
    const double *change, *rest; /* h and l; no l: null */
    int64_t gain;                /* whether h is multiplied with */
    double error;                /* by how much h may be off */
    size_t first, every;         /* as in blend_job */
    int32_t *open;
    size_t room;
    size_t *opened, *changed;
    double *kept, *update;
} change_job;

/* What the bound is made of: see fused_change.h. */
typedef struct {
    double t, of_change, of_rest, least;
} change_row;

/* A double that rounds to fewer bits as s + r + q does, where |r| and |q| are each at most half a unit in the last place
   of a sum or a product that they are the rest of: by two-sums s becomes the double next to it but for the last bits of
   the rest, of which the sign is right; and the one beside that whose last bit is 1 rounds as the value (round to odd,
   see convert.h). 0 where that is 0, which tells nothing if there is a rest. */
static inline double rounded_odd(double s, double r, double q, double *rest)
{
    dd_pair e = dd_two_sum(r, q), whole = dd_two_sum(s, e.high);
    uint64_t bits, of_rest;
    *rest = whole.low + e.low;
    memcpy(&bits, &whole.high, 8);
    memcpy(&of_rest, rest, 8);
    uint64_t away = (int64_t)(bits ^ of_rest) < 0 ? ~(uint64_t)0 : 1; /* towards the rest */
    bits += whole.high != 0 && *rest != 0 && (bits & 1) == 0 ? away : 0;
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

/* What a row is made with in DoRA: see fused_dora.h. */
typedef struct {
    double c1, c2, each, of_v, of_w;
} dora_row;

#define DORA_COLUMNS (4 * LOOK) /* at once */

static inline uint32_t once_to_F32(double x) { return to_F32(x); }

/* In DoRA the ends are rounded by way of float, and lie further apart by what that may do: MARGIN, LEAST. */
#define MARGIN (0x1p-24 * WIDER)
#define LEAST 0x1p-148
#define BITS(x) (x)
#define STORE(bits) ((uint16_t)(bits))
#define HELD uint16_t
#define WORD uint16_t
#define PUT(out, near, far) *(loose_counts *)(out) = packed(near, far)
#define STORED BF16
#define LIMIT 0x1p126
#define DIFFERENCE 0xFFFF0000
#include "fused_dora.h"
#include "fused_change.h"
#include "fused_blend_float.h"
#include "fused_blend.h"
#define STORED F16
#define LIMIT 0x1p15
#define DIFFERENCE 0xFFFF
#include "fused_dora.h"
#include "fused_change.h"
#include "fused_blend_float.h"
#include "fused_blend.h"
#undef MARGIN
#undef LEAST
#undef BITS
#undef STORE
#undef HELD
#undef WORD
#undef PUT
#define MARGIN (4 * DOUBLE_UNIT)
#define LEAST 0x1p-1060
#define BITS(x) bits_of(x)
#define STORE(bits) float_of(bits)
#define HELD float
#define WORD uint32_t
#define PUT(out, near, far)                                                                                            \
    (*(loose_words_32 *)(out) = (near), *(loose_words_32 *)((out) + FLOATS) = (far))
#define STORED F32
#define LIMIT 0x1p126
#define DIFFERENCE 0xFFFFFFFF
#include "fused_dora.h"
#include "fused_change.h"
#include "fused_blend.h"
#undef MARGIN
#undef LEAST
#undef BITS
#undef STORE
#undef HELD
#undef WORD
#undef PUT
