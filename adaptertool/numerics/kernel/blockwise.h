/* Rows times a matrix with blocks along its diagonal: blockwise.py has a twin. Each element is a sum of b products, in
   order, with as many roundings as kinds/rotation.py counts on. */

#define ABREAST_ROWS 8 /* that share what is read of the blocks, whose sums stay in registers */

/* out (count, columns) = rows, which are `apart`, times high (columns, b), one block (b, b) below the other. */
void LEVELLED(blockwise)(const double *restrict rows, size_t apart, const double *restrict high, double *restrict out,
                         size_t count, size_t columns, size_t b)
{
    size_t whole = b / DOUBLES * DOUBLES;
    for (size_t first = 0; first < count; first += ABREAST_ROWS) {
        size_t tall = count - first < ABREAST_ROWS ? count - first : ABREAST_ROWS;
        const double *own[ABREAST_ROWS];
        for (size_t i = 0; i < ABREAST_ROWS; i++)
            own[i] = rows + (first + (i < tall ? i : 0)) * apart;
        for (size_t start = 0; start < columns; start += b) {
            const double *block = high + start * b;
            double *to = out + first * columns + start;
            for (size_t j = 0; j < whole; j += DOUBLES) {
                doubles sums[ABREAST_ROWS] = {{0}};
                for (size_t k = 0; k < b; k++) {
                    doubles some = *(const loose_doubles *)(block + k * b + j);
                    _Pragma("GCC unroll 8") for (int i = 0; i < ABREAST_ROWS; i++)
                        sums[i] = add_times_doubles((doubles){0} + own[i][start + k], some, sums[i]);
                }
                for (size_t i = 0; i < tall; i++)
                    *(loose_doubles *)(to + i * columns + j) = sums[i];
            }
            for (size_t i = 0; i < tall; i++)
                for (size_t j = whole; j < b; j++) {
                    double sum = 0;
                    for (size_t k = 0; k < b; k++)
                        sum += own[i][start + k] * block[k * b + j];
                    to[i * columns + j] = sum;
                }
        }
    }
}
