/* BLAKE3 as the tree that it is (J. O'Connor, J.-P. Aumasson, S. Neves, Z. Wilcox-O'Hearn, "BLAKE3: one function, fast
   everywhere", 2021): values of groups of chunks, made in any order, and the hash that all of them fold to. As many
   chunks as a vector has words are compressed side by side, one in each lane. files/tree.py knows what a group is.

   Words lie as they are in memory, so this is for processors that begin with the lowest byte; files/tree.py looks. */

typedef uint32_t words __attribute__((vector_size(VECTOR)));
typedef uint32_t loose_words __attribute__((vector_size(VECTOR), aligned(1), may_alias));
typedef uint32_t value[8];

enum { HASH_LANES = VECTOR / 4, HASH_BLOCK = 64, HASH_CHUNK = 1024, HASH_GROUP = 64 /* chunks */ };
enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

static const value START = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB,
                            0x5BE0CD19};

#if defined(__clang__)
#define MIXED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIXED(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

/* Exchanges what lies off the diagonal of each square of 2 × 2 parts, of LENGTH words each: done for every length, on
   all rows that lie so far apart, it transposes. */
#define EXCHANGE(NAME, LENGTH, LOW, HIGH)                                                                             \
    static inline void NAME(words *rows)                                                                              \
    {                                                                                                                 \
        _Pragma("GCC unroll 16") for (int i = 0; i < HASH_LANES; i++)                                                      \
            if ((i & LENGTH) == 0) {                                                                                  \
                words a = rows[i], b = rows[i + LENGTH];                                                              \
                rows[i] = MIXED(a, b, LOW);                                                                           \
                rows[i + LENGTH] = MIXED(a, b, HIGH);                                                                 \
            }                                                                                                         \
    }
#define LIST(...) __VA_ARGS__

#if VECTOR == 16
EXCHANGE(exchange_1, 1, LIST(0, 4, 2, 6), LIST(1, 5, 3, 7))
EXCHANGE(exchange_2, 2, LIST(0, 1, 4, 5), LIST(2, 3, 6, 7))
#elif VECTOR == 32
EXCHANGE(exchange_1, 1, LIST(0, 8, 2, 10, 4, 12, 6, 14), LIST(1, 9, 3, 11, 5, 13, 7, 15))
EXCHANGE(exchange_2, 2, LIST(0, 1, 8, 9, 4, 5, 12, 13), LIST(2, 3, 10, 11, 6, 7, 14, 15))
EXCHANGE(exchange_4, 4, LIST(0, 1, 2, 3, 8, 9, 10, 11), LIST(4, 5, 6, 7, 12, 13, 14, 15))
#else
EXCHANGE(exchange_1, 1, LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
         LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
EXCHANGE(exchange_2, 2, LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
         LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
EXCHANGE(exchange_4, 4, LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
         LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
EXCHANGE(exchange_8, 8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
         LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#endif

static inline void transpose(words *rows)
{
    exchange_1(rows);
    exchange_2(rows);
#if VECTOR >= 32
    exchange_4(rows);
#endif
#if VECTOR >= 64
    exchange_8(rows);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
/* GCC makes three instructions of a rotation; by whole bytes one is enough. */
static inline words by_16(words x)
{
    return (words)_mm256_shuffle_epi8((__m256i)x, _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2,
                                                                  13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2));
}
static inline words by_8(words x)
{
    return (words)_mm256_shuffle_epi8((__m256i)x, _mm256_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1,
                                                                  12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1));
}
#else
static inline words by_16(words x) { return x >> 16 | x << 16; }
static inline words by_8(words x) { return x >> 8 | x << 24; }
#endif

/* The words of the block in the order in which each round takes them. */
static const uint8_t ORDER[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13}};

#define FOUR _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)

/* One step of a round for all four columns, or, where `turn` is 1, diagonals. Each operation is done for the four before
   the next: none of them waits for another. */
static inline __attribute__((always_inline)) void step(words *v, int turn, const words *m, const uint8_t *order)
{
    words *a = v, *b = v + 4, *c = v + 8, *d = v + 12;
    for (int half = 0; half < 2; half++) {
        FOUR a[i] += m[order[2 * i + half]];
        FOUR a[i] += b[(i + turn) & 3];
        FOUR d[(i + 3 * turn) & 3] ^= a[i];
        FOUR d[(i + 3 * turn) & 3] = half ? by_8(d[(i + 3 * turn) & 3]) : by_16(d[(i + 3 * turn) & 3]);
        FOUR c[(i + 2 * turn) & 3] += d[(i + 3 * turn) & 3];
        FOUR b[(i + turn) & 3] ^= c[(i + 2 * turn) & 3];
        FOUR b[(i + turn) & 3] = b[(i + turn) & 3] >> (half ? 7 : 12) | b[(i + turn) & 3] << (half ? 25 : 20);
    }
}

/* h = the compression of one block of each lane, of which the chunk's number is (low, high). */
static inline void compress(words *h, const uint8_t *const *in, size_t offset, words low, words high, uint32_t length,
                            uint32_t flags)
{
    words m[16], zero = {0};
    for (int part = 0; part < 16; part += HASH_LANES) {
        for (int lane = 0; lane < HASH_LANES; lane++)
            m[part + lane] = *(const loose_words *)(in[lane] + offset + 4 * part);
        transpose(m + part);
    }
    words v[16] = {h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], zero + START[0], zero + START[1], zero + START[2],
                   zero + START[3], low, high, zero + length, zero + flags};
    _Pragma("GCC unroll 7") for (int round = 0; round < 7; round++) {
        step(v, 0, m, ORDER[round]);
        step(v, 1, m, ORDER[round] + 8);
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) h[i] = v[i] ^ v[i + 8];
}

/* out = the values of `count` inputs, `apart` bytes from each other and `size` bytes long, of which the last block may
   be short and then has zeros behind it: of chunks, numbered from `first` on, where `flags` is 0, else of parents. All is
   read before any is written. */
static void side_by_side(const uint8_t *in, size_t apart, size_t count, size_t size, uint64_t first, uint32_t flags,
                         value *out)
{
    const uint8_t *lanes[HASH_LANES];
    words h[8], low = {0}, high = {0}, zero = {0};
    for (size_t lane = 0; lane < HASH_LANES; lane++) {
        uint64_t number = flags ? 0 : first + lane;
        lanes[lane] = in + apart * (lane < count ? lane : 0); /* those of nothing do as the first does */
        low[lane] = (uint32_t)number;
        high[lane] = (uint32_t)(number >> 32);
    }
    for (int i = 0; i < 8; i++)
        h[i] = zero + START[i];
    for (size_t at = 0; at < size; at += HASH_BLOCK) {
        size_t left = size - at;
        uint32_t ends = (at == 0 ? CHUNK_START : 0) | (left <= HASH_BLOCK ? CHUNK_END : 0);
        compress(h, lanes, at, low, high, left < HASH_BLOCK ? (uint32_t)left : HASH_BLOCK, flags ? flags : ends);
    }
    for (size_t lane = 0; lane < count; lane++)
        for (int i = 0; i < 8; i++)
            out[lane][i] = h[i][lane];
}

/* Values in pairs to those of their parents, in place; a last one without another stays. Returns how many are left. */
static size_t parents(value *values, size_t count, uint32_t root)
{
    size_t pairs = count / 2;
    for (size_t i = 0; i < pairs; i += HASH_LANES)
        side_by_side((const uint8_t *)values[2 * i], HASH_BLOCK, pairs - i < HASH_LANES ? pairs - i : HASH_LANES,
                     HASH_BLOCK, 0, PARENT | root, values + i);
    if (count % 2)
        memmove(values[pairs], values[count - 1], sizeof(value));
    return pairs + count % 2;
}

/* values = that of each group, in `size` bytes from the begin of group number `group` on; the last may be shorter. */
void LEVELLED(blake3_groups)(const uint8_t *in, size_t size, uint64_t group, value *values)
{
    while (size) {
        size_t own = size < HASH_GROUP * HASH_CHUNK ? size : HASH_GROUP * HASH_CHUNK;
        size_t whole = own / HASH_CHUNK, rest = own % HASH_CHUNK;
        uint64_t first = group++ * HASH_GROUP;
        value found[HASH_GROUP];
        for (size_t i = 0; i < whole; i += HASH_LANES)
            side_by_side(in + HASH_CHUNK * i, HASH_CHUNK, whole - i < HASH_LANES ? whole - i : HASH_LANES, HASH_CHUNK,
                         first + i, 0, found + i);
        if (rest) {
            uint8_t last[HASH_CHUNK] = {0};
            memcpy(last, in + HASH_CHUNK * whole, rest);
            side_by_side(last, 0, 1, rest, first + whole, 0, found + whole);
        }
        for (size_t left = whole + (rest > 0); left > 1;)
            left = parents(found, left, 0);
        memcpy(values++, found, sizeof(value));
        in += own, size -= own;
    }
}

/* The values of all groups of a file, two at least, to its hash, which is then the first of them. */
void LEVELLED(blake3_root)(value *values, size_t count)
{
    while (count > 2)
        count = parents(values, count, 0);
    parents(values, count, ROOT);
}
