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
typedef uint16_t counts __attribute__((vector_size(VECTOR)));
typedef uint16_t loose_counts __attribute__((vector_size(VECTOR), aligned(2), may_alias));
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

/* Whether any of these bits `within` the words is set; and which words have one, the first the lowest. */
static inline int any_set(words bits, uint32_t within)
{
    words mask = within - (words){0};
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)bits, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)bits, (__m256i)mask);
#elif defined(__x86_64__)
    return _mm_movemask_epi8(_mm_cmpeq_epi32((__m128i)(bits & mask), _mm_setzero_si128())) != 0xFFFF;
#elif defined(__aarch64__)
    return vmaxvq_u32((uint32x4_t)(bits & mask)) != 0;
#else
    uint32_t any = 0;
    for (int i = 0; i < FLOATS; i++)
        any |= bits[i] & within;
    return any != 0;
#endif
}

static inline uint32_t which_set(words bits, uint32_t within)
{
    words mask = within - (words){0};
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)bits, (__m512i)mask);
#elif defined(__AVX2__)
    return 0xFF & ~(uint32_t)_mm256_movemask_ps((__m256)((bits & mask) == 0));
#else
    uint32_t which = 0;
    for (int i = 0; i < FLOATS; i++)
        which |= (uint32_t)((bits[i] & mask[i]) != 0) << i;
    return which;
#endif
}

/* The larger of two, neither with its highest bit set. */
static inline words larger_of(words a, words b)
{
#if defined(__AVX512F__)
    return (words)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (words)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(__aarch64__)
    return (words)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b);
#else
    words above = (words)((signs)a > (signs)b);
    return (a & above) | (b & ~above);
#endif
}

/* Vectors of stored 16-bit numbers: to floats; and the rounding of two ends, with bits, of those that
   DIFFERENCE names, where they differ. */

static inline words words_at(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from));
#elif defined(__AVX2__)
    return (words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from));
#else
    return __builtin_convertvector(*(const loose_halves *)from, words);
#endif
}

static inline floats vector_from_BF16(const uint16_t *from) { return (floats)(words_at(from) << 16); }

static inline words vector_to_BF16(floats low, floats high, words *differ)
{
    words below = (words)low + 0x8000, above = (words)high + 0x8000; /* the way of a tie plays no part */
    *differ = below ^ above;
    return below >> 16;
}

/* Two vectors of words, none above 0xFFFF, as stored. */
static inline counts packed(words near, words far)
{
#if defined(__AVX512F__)
    __m512i first = _mm512_castsi256_si512(_mm512_cvtepi32_epi16((__m512i)near));
    return (counts)_mm512_inserti64x4(first, _mm512_cvtepi32_epi16((__m512i)far), 1);
#elif defined(__AVX2__)
    return (counts)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)near, (__m256i)far), 0xD8);
#elif defined(__aarch64__)
    return (counts)vcombine_u16(vmovn_u32((uint32x4_t)near), vmovn_u32((uint32x4_t)far));
#else
    counts both;
    for (int i = 0; i < 2 * FLOATS; i++)
        both[i] = (uint16_t)(i < FLOATS ? near[i] : far[i - FLOATS]);
    return both;
#endif
}

static inline floats vector_from_F16(const uint16_t *from)
{
    halves h = *(const loose_halves *)from;
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

#define SEVERAL 64 /* numbers of a column */

/* w + α·(row i of the left factor times column j of the right), and e: 0 where that is exact. */
static __attribute__((noinline)) double again(const block_job *job, size_t i, size_t j, double w, double alpha,
                                              double *error)
{
    const float *column = panel_at(job, j);
    const double *row = job->left_double + i * job->rank;
    doubles sums[2] = {{0}, {0}};
    float near[SEVERAL]; /* first all are fetched, each from a line of its own, and then multiplied */
    for (size_t k = 0; k < job->rank; k += SEVERAL) {
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
/* What a row of 16-bit numbers is made with. */
typedef struct {
    floats times, error, unit, tiny;
} row_16;

#define LINE 64 /* bytes of the cache */
#define SUMMED 4 /* groups of columns of which the sums are taken at once */
#define FLOAT_COLUMNS 256 /* that are computed at once */

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
