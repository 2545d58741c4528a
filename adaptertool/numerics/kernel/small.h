/* Many small tensors in one call, each changed by products of two factors (fused.h), which are laid out here as fused.py
   does it, from what is stored. What is left open here is left to others: bounds are not smaller than theirs, so where
   nothing is open here, nothing is there. */

#define UP (1 + 0x1p-19) /* more than the roundings of a length; above that of fused.py */
#define SHORT 0x1p-140   /* a length whose square may be lost */
#define BEYOND 0x1p900   /* what is said of zeros, which are multiples of all powers of two */

typedef struct {
    uint64_t at; /* elements of the stretch before it */
    uint64_t rows, columns;
    uint64_t products; /* how many act on it; they follow on those of the tensor before */
    uint64_t few_bits; /* whether it may be that sums of products are exact */
} small_tensor;

typedef struct {
    uint64_t right, left; /* bytes before the factors: (rank, columns) and (rows, rank) */
    uint64_t right_stored, left_stored;
    uint64_t rank;
    uint64_t transposed; /* they are stored as (columns, rank) and (rank, rows) */
    double scale;        /* of the left one */
} small_product;

typedef struct {
    const char *in;   /* a stretch of a file, as stored */
    char *const *out; /* for each alpha, the same */
    const double *alpha;
    size_t alphas, count;
    const small_tensor *tensors;
    const small_product *products;
    const char *factors;
    int64_t *changed;      /* count x alphas; -1 for tensors that are not made */
    double *kept, *update; /* count x alphas */
} small_job;

/* The number of each way to store a factor, in small.py too. */
enum { STORED_BF16, STORED_F16, STORED_F32, STORED_F64 };

static inline float factor_at(const char *from, uint64_t stored, size_t n)
{
    uint16_t half;
    float single;
    if (stored == STORED_F32) {
        memcpy(&single, from + 4 * n, 4);
        return single;
    }
    memcpy(&half, from + 2 * n, 2);
    return stored == STORED_BF16 ? from_BF16(half) : from_F16(half);
}

/* `power` or, if that is less, the largest power of two of which x, no subnormal number, is a multiple. */
static inline double lower_power(double power, double x)
{
    uint64_t bits;
    double low;
    if (x == 0)
        return power;
    memcpy(&bits, &x, 8);
    bits = (bits & 0x7FF0000000000000) - ((uint64_t)(52 - __builtin_ctzll(bits | 1ull << 52)) << 52);
    memcpy(&low, &bits, 8);
    return low < power ? low : power;
}

/* Lays out the right factors of a tensor. Returns 0 where numbers are too large, or none. */
static int lay_out_right(const small_job *job, const small_tensor *tensor, const small_product *products, size_t rank,
                         float *panels, float *norm, double *power, double *squares, float *largest)
{
    size_t width = (tensor->columns + PAD - 1) / PAD * PAD;
    memset(panels, 0, width * rank * sizeof *panels);
    for (size_t j = 0; j < width; j++) {
        norm[j] = 0; /* the largest magnitude, at first */
        squares[j] = 0;
        power[j] = tensor->few_bits && j < tensor->columns ? BEYOND : 0;
    }
    for (size_t n = 0, first = 0; n < tensor->products; first += products[n++].rank) {
        const small_product *one = products + n;
        const char *from = job->factors + one->right;
        size_t down = one->transposed ? 1 : tensor->columns, along = one->transposed ? one->rank : 1;
        for (size_t k = 0; k < one->rank; k++)
            for (size_t j = 0; j < tensor->columns; j++) {
                float x = factor_at(from, one->right_stored, k * down + j * along), size = fabsf(x);
                panels[j / GROUP * GROUP * rank + (first + k) * GROUP + j % GROUP] = x;
                squares[j] += (double)x * x;
                norm[j] = size > norm[j] ? size : norm[j]; /* of NaN the squares tell */
                if (tensor->few_bits)
                    power[j] = lower_power(power[j], x);
            }
    }
    *largest = 0;
    int fine = 1;
    for (size_t j = 0; j < width; j++) {
        fine &= norm[j] < 0x1p60f && squares[j] < INFINITY;
        *largest = norm[j] > *largest ? norm[j] : *largest;
        float length = (float)(sqrt(squares[j]) * UP);
        norm[j] = norm[j] > 0 && length < (float)SHORT ? (float)SHORT : length;
    }
    return fine;
}

/* The same for the left factors, times their scales. */
static int lay_out_left(const small_job *job, const small_tensor *tensor, const small_product *products, size_t rank,
                        float *left, double *wide, double *norm, double *power, double *largest)
{
    int fine = 1;
    *largest = 0;
    for (size_t i = 0; i < tensor->rows; i++) {
        double squares = 0, most = 0, low = tensor->few_bits ? BEYOND : 0;
        for (size_t n = 0, first = 0; n < tensor->products; first += products[n++].rank) {
            const small_product *one = products + n;
            const char *from = job->factors + one->left;
            size_t begin = one->transposed ? i : i * one->rank, along = one->transposed ? tensor->rows : 1;
            for (size_t k = 0; k < one->rank; k++) {
                double x = (double)factor_at(from, one->left_stored, begin + k * along) * one->scale, size = fabs(x);
                wide[i * rank + first + k] = x;
                left[i * rank + first + k] = (float)x;
                squares += x * x;
                fine &= size < 0x1p60 && (size >= 0x1p-400 || size == 0);
                most = size > most ? size : most;
                if (tensor->few_bits)
                    low = lower_power(low, x);
            }
        }
        norm[i] = sqrt(squares) * UP;
        norm[i] = most > 0 && norm[i] < SHORT ? SHORT : norm[i];
        power[i] = low;
        *largest = most > *largest ? most : *largest;
    }
    return fine;
}

typedef int (*block_maker)(const block_job *);

/* Makes one tensor; `room` is for its factors. Returns 0 where it cannot, or leaves an element open. */
static int make_small(const small_job *job, const small_tensor *tensor, const small_product *products, size_t rank,
                      char *room, block_maker make, size_t item, size_t number)
{
    size_t width = (tensor->columns + PAD - 1) / PAD * PAD, rows = tensor->rows, alphas = job->alphas;
    double *right_power = (double *)room, *squares = right_power + width, *wide = squares + width;
    double *left_norm = wide + rows * rank, *left_power = left_norm + rows;
    float *panels = (float *)(left_power + rows), *right_norm = panels + width * rank, *left = right_norm + width;
    void *out[MOST_ALPHAS];
    size_t opened[MOST_ALPHAS] = {0}, changed[MOST_ALPHAS] = {0};
    double most = 1, longest = 0, least_alpha = INFINITY, largest_left;
    float widest = 0, largest_right;

    if (alphas > MOST_ALPHAS || !lay_out_right(job, tensor, products, rank, panels, right_norm, right_power, squares, &largest_right) ||
        !lay_out_left(job, tensor, products, rank, left, wide, left_norm, left_power, &largest_left))
        return 0;
    for (size_t a = 0; a < alphas; a++) {
        double size = fabs(job->alpha[a]);
        most = size > most ? size : most;
        least_alpha = size < least_alpha ? size : least_alpha;
        out[a] = job->out[a] + tensor->at * item;
    }
    for (size_t i = 0; i < rows; i++)
        longest = left_norm[i] > longest ? left_norm[i] : longest;
    for (size_t j = 0; j < width; j++)
        widest = right_norm[j] > widest ? right_norm[j] : widest;
    if (!(most < 0x1p60) || !(least_alpha > 0x1p-60) || !(longest * (double)widest * most < 0x1p110))
        return 0;
    block_job block = {
        .in = job->in + tensor->at * item,
        .out = out,
        .alpha = job->alpha,
        .alphas = alphas,
        .rows = rows,
        .columns = tensor->columns,
        .rank = rank,
        .panels = panels,
        .right_norm = right_norm,
        .right_power = right_power,
        .left = left,
        .left_double = wide,
        .left_norm = left_norm,
        .left_power = left_power,
        .tiny = most * (1 + largest_left + (double)largest_right) * (double)(rank + 2) * 0x1p-147,
        .weight = 1,
        .every = (rows / 64 > 1 ? rows / 64 : 1) | 1,
        .opened = opened,
        .changed = changed,
        .kept = job->kept + number * alphas,
        .update = job->update + number * alphas,
    };
    int fine = make(&block);
    for (size_t a = 0; a < alphas; a++) {
        fine &= opened[a] == 0;
        job->changed[number * alphas + a] = (int64_t)changed[a];
    }
    return fine;
}

static void make_all_small(const small_job *job, block_maker make, size_t item)
{
    const small_product *products = job->products;
    char *room = NULL;
    size_t size = 0;
    for (size_t n = 0; n < job->count; products += job->tensors[n++].products) {
        const small_tensor *tensor = job->tensors + n;
        size_t rank = 0, width = (tensor->columns + PAD - 1) / PAD * PAD;
        for (size_t p = 0; p < tensor->products; p++)
            rank += products[p].rank;
        size_t needed = width * (rank * 4 + 20) + tensor->rows * (rank * 12 + 16);
        if (needed > size) {
            free(room);
            size = (room = malloc(needed)) == NULL ? 0 : needed;
        }
        if (room == NULL || !make_small(job, tensor, products, rank, room, make, item, n))
            for (size_t a = 0; a < job->alphas; a++)
                job->changed[n * job->alphas + a] = -1;
    }
    free(room);
}

void LEVELLED(small_BF16)(const small_job *job) { make_all_small(job, LEVELLED(lora_BF16), 2); }
void LEVELLED(small_F16)(const small_job *job) { make_all_small(job, LEVELLED(lora_F16), 2); }
void LEVELLED(small_F32)(const small_job *job) { make_all_small(job, LEVELLED(lora_F32), 4); }

/* --- factors as they are stored: are they numbers, and which rows are zero --- */

typedef struct {
    uint64_t at; /* bytes before it */
    uint64_t rows, columns;
    uint64_t stored;
} small_factor;

#define ROWS_OF(word, special)                                                                                         \
    for (size_t i = 0; i < factor->rows; i++) {                                                                        \
        word any = 0, worst = 0, x;                                                                                    \
        for (size_t j = 0; j < factor->columns; j++) {                                                                 \
            memcpy(&x, from + (i * factor->columns + j) * sizeof x, sizeof x);                                         \
            x = (word)(x << 1) >> 1;                                                                                   \
            any |= x;                                                                                                  \
            worst = x > worst ? x : worst;                                                                             \
        }                                                                                                              \
        zero += any == 0;                                                                                              \
        fine &= worst < (special);                                                                                     \
    }

/* zero[n] = how many rows of factor n are zero; returns 0 where a number of any is not finite. */
int LEVELLED(zero_rows)(const char *bytes, const small_factor *factors, size_t count, uint64_t *zeros)
{
    int fine = 1;
    for (size_t n = 0; n < count; n++) {
        const small_factor *factor = factors + n;
        const char *from = bytes + factor->at;
        uint64_t zero = 0;
        if (factor->stored == STORED_BF16) {
            ROWS_OF(uint16_t, 0x7F80)
        } else if (factor->stored == STORED_F16) {
            ROWS_OF(uint16_t, 0x7C00)
        } else if (factor->stored == STORED_F32) {
            ROWS_OF(uint32_t, 0x7F800000)
        } else {
            ROWS_OF(uint64_t, 0x7FF0000000000000)
        }
        zeros[n] = zero;
    }
    return fine;
}
#undef ROWS_OF
#undef UP
#undef SHORT
