/* Vectors of stored numbers: to floats and doubles, and the rounding of the two ends of an interval, with bits where they
   differ. Included by fused.h. */

typedef uint32_t words __attribute__((vector_size(VECTOR)));
typedef int32_t signs __attribute__((vector_size(VECTOR)));
typedef uint16_t halves __attribute__((vector_size(VECTOR / 2)));
typedef uint16_t counts __attribute__((vector_size(VECTOR)));
typedef uint16_t loose_counts __attribute__((vector_size(VECTOR), aligned(2), may_alias));
typedef uint16_t loose_halves __attribute__((vector_size(VECTOR / 2), aligned(2), may_alias));

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

/* The rounding of the low end, one word each, and in *differ bits, of those that DIFFERENCE names (fused.h), where that of
   the high end is another. */
static inline words vector_to_BF16(floats low, floats high, words *differ)
{
    words below = (words)low + 0x8000, above = (words)high + 0x8000; /* the way of a tie plays no part */
    *differ = below ^ above;
    return below >> 16;
}

/* The same, where the two ends may be one: ties to even. */
static inline words vector_nearest_BF16(floats low, floats high, words *differ)
{
    words below = (words)low + 0x7FFF + ((words)low >> 16 & 1), above = (words)high + 0x7FFF + ((words)high >> 16 & 1);
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

static inline words vector_nearest_F16(floats low, floats high, words *differ) { return vector_to_F16(low, high, differ); }

/* What a·b, rounded to `product`, lacks: exactly, where it is not too small for a float. */
static inline floats lost_in_product(floats a, floats b, floats product)
{
#if defined(__AVX512F__) || (defined(__FMA__) && defined(__AVX2__)) || defined(__aarch64__)
    return add_times_floats(a, b, -product);
#else
    floats lost;
    for (int i = 0; i < FLOATS; i++)
        lost[i] = (float)((double)a[i] * b[i] - product[i]);
    return lost;
#endif
}

typedef uint32_t loose_words_32 __attribute__((vector_size(VECTOR), aligned(4), may_alias));
typedef long long longs __attribute__((vector_size(VECTOR)));

static inline doubles size_doubles(doubles x) { return (doubles)((longs)x & 0x7FFFFFFFFFFFFFFF); }

static inline int all_set(longs x)
{
    long long all = -1;
    for (int i = 0; i < DOUBLES; i++)
        all &= x[i];
    return all == -1;
}

/* Two vectors of doubles as one of floats, each rounded once. */
static inline floats joined(doubles a, doubles b)
{
#if defined(__AVX512F__)
    __m512 first = _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a));
    return (floats)_mm512_insertf32x8(first, _mm512_cvtpd_ps((__m512d)b), 1);
#elif defined(__AVX2__)
    return (floats)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)b), _mm256_cvtpd_ps((__m256d)a));
#else
    return (floats){(float)a[0], (float)a[1], (float)b[0], (float)b[1]};
#endif
}

/* As many stored numbers as there are doubles in a vector, exactly. */
static inline doubles doubles_from_BF16(const uint16_t *from)
{
#if defined(__AVX512F__)
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from));
    return (doubles)_mm512_cvtps_pd((__m256)_mm256_slli_epi32(wide, 16));
#elif defined(__AVX2__)
    __m128i wide = _mm_cvtepu16_epi32(_mm_loadl_epi64((const void *)from));
    return (doubles)_mm256_cvtps_pd((__m128)_mm_slli_epi32(wide, 16));
#else
    return (doubles){from_BF16(from[0]), from_BF16(from[1])};
#endif
}

static inline doubles doubles_from_F16(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (doubles)_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const void *)from)));
#elif defined(__AVX2__)
    return (doubles)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const void *)from)));
#else
    return (doubles){from_F16(from[0]), from_F16(from[1])};
#endif
}

static inline doubles doubles_from_F32(const float *from) { return doubles_at(from); }

static inline words vector_to_F32(floats low, floats high, words *differ)
{
    *differ = (words)low ^ (words)high;
    return (words)low;
}
