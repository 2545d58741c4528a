/* The product of two factors, added to rows of a weight, and the squares of such rows: product.py has a twin of each. */

/* left @ right in parts of HIGH rows and PARTS vectors, each element summed by itself; EACH is done with every row of a
   part: sum[i] from column c on, of which `wide` are there. `rows` has `columns` columns, and `stride` elements from one
   row to the next; rank is at most DEEPEST. */
#define DEEPEST 256
#define HIGH (VECTOR == 64 ? 4 : 2) /* sums that stay in registers */
#define PARTS 4
#define PRODUCT(REAL, REALS, ADD, EACH)                                                                               \
    enum { WIDE = PARTS * VECTOR / sizeof(REAL) };                                                                    \
    REALS panel[DEEPEST][PARTS];                                                                                      \
    for (size_t c = 0; c < columns; c += WIDE) {                                                                      \
        size_t wide = columns - c < WIDE ? columns - c : WIDE;                                                        \
        memset(panel, 0, rank * sizeof panel[0]);                                                                     \
        for (size_t k = 0; k < rank; k++)                                                                             \
            memcpy(panel[k], right + k * columns + c, wide * sizeof(REAL));                                           \
        for (size_t r = 0; r < count; r += HIGH) {                                                                    \
            size_t high = count - r < HIGH ? count - r : HIGH;                                                        \
            const REAL *own[HIGH];                                                                                    \
            REALS sum[HIGH][PARTS] = {0};                                                                             \
            for (size_t i = 0; i < HIGH; i++)                                                                         \
                own[i] = left + (r + (i < high ? i : 0)) * rank;                                                      \
            for (size_t k = 0; k < rank; k++)                                                                         \
                for (size_t i = 0; i < HIGH; i++)                                                                     \
                    for (size_t v = 0; v < PARTS; v++)                                                                \
                        sum[i][v] = ADD((REALS){0} + own[i][k], panel[k][v], sum[i][v]);                              \
            for (size_t i = 0; i < high; i++) {                                                                       \
                EACH                                                                                                  \
            }                                                                                                         \
        }                                                                                                             \
    }

/* rows += left @ right: each element of the product is added once, which kinds/lora.py's bound counts on. */
#define ADD_PRODUCT(NAME, REAL, REALS)                                                                                \
    void LEVELLED(NAME)(REAL *restrict rows, const REAL *restrict left, const REAL *restrict right, size_t count,     \
                     size_t columns, size_t stride, size_t rank)                                                      \
    {                                                                                                                 \
        PRODUCT(REAL, REALS, add_times_##REALS, {                                                                     \
            REAL *row = rows + (r + i) * stride + c;                                                                  \
            const REAL *add = (const REAL *)sum[i];                                                                   \
            if (wide == WIDE)                                                                                         \
                for (size_t j = 0; j < WIDE; j++)                                                                     \
                    row[j] += add[j];                                                                                 \
            else                                                                                                      \
                for (size_t j = 0; j < wide; j++)                                                                     \
                    row[j] += add[j];                                                                                 \
        })                                                                                                            \
    }

ADD_PRODUCT(add_product_f4, float, floats)
ADD_PRODUCT(add_product_f8, double, doubles)

/* out = 8 sums for each row of rows + left @ right, in double, which together are its sum of squares: each of the
   squares of its own columns, PARTS of them first added up. */
#define LANES 8 /* whatever the length of a vector: the bound of kinds/dora.py counts on it */
#define SQUARES(NAME, REAL)                                                                                           \
    typedef REAL NAME##_part __attribute__((vector_size(DOUBLES * sizeof(REAL))));                                    \
    void LEVELLED(NAME)(const REAL *restrict rows, const double *restrict left, const double *restrict right,         \
                     double *restrict out, size_t count, size_t columns, size_t stride, size_t rank)                  \
    {                                                                                                                 \
        memset(out, 0, count * LANES * sizeof *out);                                                                  \
        PRODUCT(double, doubles, add_times_doubles, {                                                                 \
            const REAL *row = rows + (r + i) * stride + c;                                                            \
            NAME##_part parts[PARTS] = {0};                                                                           \
            doubles squares = {0};                                                                                    \
            doubles lanes;                                                                                            \
            if (wide == WIDE)                                                                                         \
                memcpy(parts, row, sizeof parts);                                                                     \
            else                                                                                                      \
                memcpy(parts, row, wide * sizeof(REAL));                                                              \
            for (size_t v = 0; v < PARTS; v++) {                                                                      \
                doubles whole = sum[i][v] + __builtin_convertvector(parts[v], doubles);                               \
                squares += whole * whole;                                                                             \
            }                                                                                                         \
            double *own_lanes = out + (r + i) * LANES + c / WIDE * DOUBLES % LANES;                                   \
            memcpy(&lanes, own_lanes, sizeof lanes);                                                                  \
            lanes += squares;                                                                                         \
            memcpy(own_lanes, &lanes, sizeof lanes);                                                                  \
        })                                                                                                            \
    }

SQUARES(squares_f4, float)
SQUARES(squares_f8, double)

#undef HIGH
#undef PARTS
