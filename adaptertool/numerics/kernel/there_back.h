/* Products of a block of rows with few columns, there and back: held.py. BLAS packs the block anew for each of the two,
   which takes as long as the sums. Columns lie in panels of COLUMNS, row by row: right and back[panel][k][COLUMNS]. */

#define COLUMNS 16 /* as in held.py */
#define BACK_ROWS 6    /* rows at a time: with the columns of a panel they fill the registers */
#define BACK_STRETCH 1024 /* elements of a row before sums are put away: what they meet stays in the cache */
#define VECTORS (COLUMNS / FLOATS)

static inline __attribute__((always_inline)) void there(const float *rows, const float *right, float *left, size_t high,
                                                        size_t stride, size_t apart, size_t length)
{
    floats sum[BACK_ROWS][VECTORS];
    memset(sum, 0, sizeof sum);
    for (size_t k = 0; k < length; k++)
        _Pragma("GCC unroll 8")
        for (size_t i = 0; i < high; i++)
            _Pragma("GCC unroll 8")
            for (size_t v = 0; v < VECTORS; v++)
                sum[i][v] = add_times_floats(rows[i * stride + k] - (floats){0},
                                             ((const loose_floats *)(right + k * COLUMNS))[v], sum[i][v]);
    _Pragma("GCC unroll 8")
    for (size_t i = 0; i < high; i++)
        _Pragma("GCC unroll 8")
        for (size_t v = 0; v < VECTORS; v++)
            ((loose_floats *)(left + i * apart))[v] += sum[i][v];
}

static inline __attribute__((always_inline)) void back_again(const float *rows, const float *left, float *back,
                                                             size_t high, size_t stride, size_t apart, size_t length)
{
    floats own[BACK_ROWS][VECTORS];
    memset(own, 0, sizeof own);
    _Pragma("GCC unroll 8")
    for (size_t i = 0; i < high; i++)
        _Pragma("GCC unroll 8")
        for (size_t v = 0; v < VECTORS; v++)
            own[i][v] = ((const loose_floats *)(left + i * apart))[v];
    for (size_t k = 0; k < length; k++) {
        floats sum[VECTORS];
        _Pragma("GCC unroll 8")
        for (size_t v = 0; v < VECTORS; v++)
            sum[v] = ((const loose_floats *)(back + k * COLUMNS))[v];
        _Pragma("GCC unroll 8")
        for (size_t i = 0; i < high; i++)
            _Pragma("GCC unroll 8")
            for (size_t v = 0; v < VECTORS; v++)
                sum[v] = add_times_floats(rows[i * stride + k] - (floats){0}, own[i][v], sum[v]);
        _Pragma("GCC unroll 8")
        for (size_t v = 0; v < VECTORS; v++)
            ((loose_floats *)(back + k * COLUMNS))[v] = sum[v];
    }
}

/* left (count, panels·COLUMNS) = rows @ right, for rows (count, wide); and, where back is given, back += rowsᵀ @ left. */
void LEVELLED(there_and_back)(const float *restrict rows, const float *restrict right, float *restrict left,
                              float *restrict back, size_t count, size_t wide, size_t panels)
{
    size_t apart = panels * COLUMNS;
    memset(left, 0, count * apart * sizeof *left);
#define IN_PARTS(CALL, PANELS)                                                                                        \
    for (size_t k = 0; k < wide; k += BACK_STRETCH)                                                                        \
        for (size_t r = 0; r < count; r += BACK_ROWS)                                                                     \
            for (size_t p = 0; p < panels; p++) {                                                                     \
                size_t length = wide - k < BACK_STRETCH ? wide - k : BACK_STRETCH;                                              \
                const float *part = rows + r * wide + k;                                                              \
                if (count - r >= BACK_ROWS)                                                                               \
                    CALL(part, PANELS + (p * wide + k) * COLUMNS, left + r * apart + p * COLUMNS, BACK_ROWS);             \
                else                                                                                                  \
                    CALL(part, PANELS + (p * wide + k) * COLUMNS, left + r * apart + p * COLUMNS, count - r);         \
            }
#define THERE(part, panel, own, high) there(part, panel, own, high, wide, apart, length)
#define BACK(part, panel, own, high) back_again(part, own, panel, high, wide, apart, length)
    IN_PARTS(THERE, right)
    if (back)
        IN_PARTS(BACK, back)
}
