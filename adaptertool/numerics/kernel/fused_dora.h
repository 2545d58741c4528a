/* DoRA, in one visit of each row: included by fused_double.h once for each dtype, STORED, held as HELD.

   V = w + left·right, f = m / ‖V‖, and x = w + t·(f·V − w) = (1 − t)·w + t·f·V, with t = α·weight. Computed are c1 of
   1 − t and c2 of t·f. |V̂ − V| ≤ δ + u·|V̂|, with δ = (rank + 5)·u·‖left_i‖·‖right_j‖, so ‖V̂‖ is within
   (rank + 5)·u·‖left_i‖·‖right‖ + u·‖V̂‖ of the norm, and the sum of squares, half of whose relative error is that of its root, takes
   columns/LOOK + 16 roundings one after another. All of it relatively to the norm is `off`, and f is known to within off + 2·off² + 2·u. */

#define FROM GLUED(from, STORED)
#define ROW GLUED(dora_row, STORED)

/* Rounds row i, for V (columns), f and how far it is off, relatively. Returns 0 where an element is too large, or none. */
static int ROW(const block_job *job, size_t a, size_t i, const double *restrict v, double f, double off)
{
    const HELD *restrict in = (const HELD *)job->in + i * job->columns;
    const float *restrict norm = job->right_norm;
    HELD *restrict out = (HELD *)job->out[a] + i * job->columns;
    double t = job->alpha[a] * job->weight, c1 = t == 1 ? 0 : 1 - t, c2 = t * f, u = DOUBLE_UNIT;
    double each = fabs(c2) * ((double)job->rank + 6) * u * job->left_norm[i] * WIDER;
    double of_v = (off + 2 * off * off + 8 * u) * WIDER, of_w = t == 1 ? 0 : 4 * u * (fabs(c1) + fabs(t) + 1);
    int32_t fine = -1;
    size_t changed = 0;
    for (size_t first = 0; first < job->columns; first += LOOK) {
        uint32_t differ[LOOK], any = 0, moved = 0;
        size_t count = job->columns - first < LOOK ? job->columns - first : LOOK;
        for (size_t j = 0; j < count; j++) {
            double w = FROM(in[first + j]), p = c2 * v[first + j], x = c1 * w + p, size = fabs(x);
            double reach = each * norm[first + j] + of_v * fabs(p) + of_w * fabs(w) + MARGIN * size + LEAST;
            uint32_t low = QUICK(x - reach), high = QUICK(x + reach);
            differ[j] = low ^ high;
            any |= differ[j];
            moved += low != BITS(in[first + j]);
            fine &= -(int32_t)(size < LIMIT);
            out[first + j] = STORE(low);
        }
        changed += moved;
        if (any)
            for (size_t j = 0; j < count; j++)
                if (differ[j]) { /* the ends again, rounded once */
                    double w = FROM(in[first + j]), p = c2 * v[first + j], x = c1 * w + p;
                    double reach = each * norm[first + j] + of_v * fabs(p) + of_w * fabs(w) + 4 * u * fabs(x) + 0x1p-1060;
                    uint32_t low = GLUED(once_to, STORED)(x - reach), high = GLUED(once_to, STORED)(x + reach);
                    if (low != high)
                        leave(job, a, i * job->columns + first + j);
                    changed += (size_t)(low != BITS(in[first + j])) - (size_t)(BITS(out[first + j]) != BITS(in[first + j]));
                    out[first + j] = STORE(low);
                }
    }
    job->changed[a] += changed;
    if (sampled(job, i))
        for (size_t j = 0; j < job->columns; j++) {
            double w = FROM(in[j]), delta = c1 * w + c2 * v[j] - w;
            job->kept[a] += ((double)FROM(out[j]) - w) * delta;
            job->update[a] += delta * delta;
        }
    return fine;
}

/* Makes the block. Returns 0 where it cannot: a number is too large, or none, or a norm next to nothing. */
int LEVELLED(GLUED(dora, STORED))(const block_job *job)
{
    size_t stride = (job->columns + GROUP - 1) / GROUP * GROUP, high;
    double *rows = malloc(TALL * stride * sizeof *rows), u = DOUBLE_UNIT;
    double roundings = (double)(job->columns / LOOK + 16) / 2 + 2, sums = ((double)job->rank + 5) * u * WIDER;
    int fine = rows != NULL;
    for (size_t row = 0; fine && row < job->rows; row += high) {
        size_t which[TALL];
        for (high = 0; high < TALL && row + high < job->rows; high++)
            which[high] = row + high;
        products(job, which, high, 0, job->columns, rows, stride);
        for (size_t i = 0; i < high && fine; i++) {
            const HELD *in = (const HELD *)job->in + which[i] * job->columns;
            double *v = rows + i * stride, squares = 0;
            for (size_t first = 0; first < job->columns; first += LOOK) { /* in lanes, then in groups */
                double lanes[8] = {0};
                size_t count = job->columns - first < LOOK ? job->columns - first : LOOK;
                for (size_t j = 0; j < count; j++)
                    v[first + j] += FROM(in[first + j]);
                for (size_t j = count; j < LOOK && first + j < stride; j++)
                    v[first + j] = 0;
                for (size_t j = 0; j < LOOK && first + j < stride; j += 8)
                    for (size_t l = 0; l < 8; l++)
                        lanes[l] += v[first + j + l] * v[first + j + l];
                squares += ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
            }
            double norm = sqrt(squares), m = job->magnitude[which[i]], f = m / norm;
            double off = sums * job->left_norm[which[i]] * job->right_length / norm + roundings * u;
            fine = off < 0x1p-10 && norm > 0x1p-300 && norm < 0x1p300 && fabs(f) < 0x1p300;
            for (size_t a = 0; a < job->alphas && fine; a++)
                fine = ROW(job, a, which[i], v, f, off) != 0;
        }
    }
    free(rows);
    return fine;
}

#undef FROM
#undef ROW
