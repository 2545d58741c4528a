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
   with w once. */

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
    const float *left;         /* (rows, rank): the left factor times the scale */
    const double *left_double; /* the same */
    const double *left_norm;   /* no row is longer */
    const double *left_power;  /* as of the columns */
    double tiny;               /* more than what underflow takes away from a sum in float */
    const double *magnitude;   /* (rows): what stands over the norm; null where no row is divided by its norm */
    double weight;             /* of the change, with a magnitude */
    size_t first, every;       /* rows whose sums are taken: those where first + row is a multiple of `every` */
    int32_t *open;             /* alphas x room: which elements are left */
    size_t room;
    size_t *opened;            /* for each alpha, how many: where that is more than `room`, some are not told */
    size_t *changed;           /* for each alpha, how many are not stored as they were */
    double *kept, *update;     /* for each alpha, sums over some rows of (new - old)·Δ and Δ·Δ, with Δ = α·(the change) */
} block_job;

typedef uint32_t words __attribute__((vector_size(VECTOR)));
typedef int32_t signs __attribute__((vector_size(VECTOR)));
typedef uint16_t halves __attribute__((vector_size(VECTOR / 2)));
typedef uint16_t loose_halves __attribute__((vector_size(VECTOR / 2), aligned(2), may_alias));

#define EACH _Pragma("GCC unroll 16")

static inline floats all_floats(float x) { return x - (floats){0}; } /* −0 stays −0 */
static inline doubles all_doubles(double x) { return x - (doubles){0}; }

/* As many floats as there are doubles in a vector, exactly. */
static inline doubles doubles_at(const float *x)
{
#if defined(__AVX512F__)
    return (doubles)_mm512_cvtps_pd(_mm256_loadu_ps(x));
#elif defined(__AVX2__)
    return (doubles)_mm256_cvtps_pd(_mm_loadu_ps(x));
#else
    return (doubles){x[0], x[1]};
#endif
}

static inline floats size_floats(floats x) { return (floats)((words)x & 0x7FFFFFFF); }

static inline int any_set(words bits)
{
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)bits, (__m512i)bits) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)bits, (__m256i)bits);
#elif defined(__x86_64__)
    return _mm_movemask_epi8(_mm_cmpeq_epi32((__m128i)bits, _mm_setzero_si128())) != 0xFFFF;
#elif defined(__aarch64__)
    return vmaxvq_u32((uint32x4_t)bits) != 0;
#else
    uint32_t any = 0;
    for (int i = 0; i < FLOATS; i++)
        any |= bits[i];
    return any != 0;
#endif
}

/* Vectors of stored 16-bit numbers: to floats; and the rounding of two ends, with bits where they differ. */

static inline floats vector_from_BF16(halves h) { return (floats)(__builtin_convertvector(h, words) << 16); }

static inline words vector_to_BF16(floats low, floats high, words *differ)
{
    words below = (words)low + 0x8000, above = (words)high + 0x8000; /* the way of a tie plays no part */
    *differ = (below ^ above) & 0xFFFF0000;
    return below >> 16;
}

/* Two vectors of words, none above 0xFFFF, as stored. */
static inline void store_halves(uint16_t *to, words near, words far)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256i mixed = _mm256_packus_epi32((__m256i)near, (__m256i)far);
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(mixed, 0xD8));
#else
    *(loose_halves *)to = __builtin_convertvector(near, halves);
    *(loose_halves *)(to + FLOATS) = __builtin_convertvector(far, halves);
#endif
}

static inline floats vector_from_F16(halves h)
{
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
    return (floats)_mm256_cvtph_ps((__m128i)h);
#else
    floats x;
    for (int i = 0; i < FLOATS; i++)
        x[i] = from_F16(h[i]);
    return x;
#endif
}

static inline halves halves_of(floats x)
{
#if defined(__AVX512F__)
    return (halves)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    halves h;
    for (int i = 0; i < FLOATS; i++)
        h[i] = (uint16_t)to_F16(x[i]);
    return h;
#endif
}

static inline words vector_to_F16(floats low, floats high, words *differ)
{
    words below = __builtin_convertvector(halves_of(low), words), above = __builtin_convertvector(halves_of(high), words);
    *differ = below ^ above;
    return below;
}

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

/* w + α·(row i of the left factor times column j of the right), and e: 0 where that is exact. */
static __attribute__((noinline)) double again(const block_job *job, size_t i, size_t j, double w, double alpha,
                                              double *error)
{
    const float *column = panel_at(job, j);
    const double *row = job->left_double + i * job->rank;
    double sums[4] = {0};
    size_t k = 0;
    for (; k + 3 < job->rank; k += 4)
        for (size_t n = 0; n < 4; n++)
            sums[n] += row[k + n] * column[(k + n) * GROUP];
    for (; k < job->rank; k++)
        sums[k % 4] += row[k] * column[k * GROUP];
    double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double most = job->left_norm[i] * job->right_norm[j] * fabs(alpha) * WIDER, x = w + alpha * sum;
    double power = job->left_power[i] * job->right_power[j];
    *error = ((double)job->rank + 6) * DOUBLE_UNIT * most + 4 * DOUBLE_UNIT * fabs(x) + 0x1p-1060;
    if (power > 0 && most + fabs(w) < 0x1p53 * fmin(power * lowest(alpha), lowest(w)))
        *error = 0;
    return x;
}

/* An element that is left: its place is noted. */
static inline void leave(const block_job *job, size_t a, size_t place)
{
    size_t found = job->opened[a]++;
    if (found < job->room)
        job->open[a * job->room + found] = (int32_t)place;
}

/* Rows whose sums stay in registers, with two vectors of columns each. */
#if VECTOR == 64
#define TALL 12
#else
#define TALL 6
#endif

/* Columns of which the panels stay in the cache. */
static inline size_t columns_at_once(size_t rank)
{
    size_t columns = 128 * 1024 / (sizeof(float) * (rank + 1)) / PAD * PAD;
    return columns < PAD ? PAD : columns;
}

/* The numbers of the next rows of which something changes, from *row on, at most TALL. Returns how many. */
static inline size_t next_rows(const block_job *job, size_t *row, size_t *which)
{
    size_t found = 0;
    for (; *row < job->rows && found < TALL; ++*row)
        if (job->left_norm[*row] > 0)
            which[found++] = *row;
    return found;
}

#define MOST_ALPHAS 8

/* What tiles find out, in vectors. */
typedef struct {
    words fine;                /* all bits where all numbers are */
    signs same[MOST_ALPHAS];   /* minus how many are stored as they were */
    float times[MOST_ALPHAS];  /* α */
    float error[MOST_ALPHAS];  /* of α times a sum, for a row and a column of length 1 */
} checks_16;

#define STORED BF16
#define LIMIT 0x1p126f
#include "fused_float.h"
#undef STORED
#undef LIMIT
#define STORED F16
#define LIMIT 0x1p15f
#include "fused_float.h"
#undef STORED
#undef LIMIT

#include "fused_double.h"
