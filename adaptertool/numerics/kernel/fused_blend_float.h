/* w + α·(t − w) of stored numbers of 16 bits in float, where that tells how it rounds: included by fused_double.h once
   for each dtype, STORED; what it leaves open is for fused_blend.h.

   With near + rest = α, d + d' = t − w, p + q = near·d and x + e = w + p, each pair exactly (two-sums; q is exact where p
   is not small), the value is x + (e + q + rest·d + α·d'). Where all of the parentheses is 0 it is x; else it is within
   `reach` of x, which is that, and what the roundings of reach and of x − reach, x + reach may do, at most. No two
   operations are rounded together, so all levels leave the same elements open. */

#define IN_FLOAT GLUED(mixed_in_float, STORED)
#define TILE GLUED(blend_tile, STORED)
#define VECTOR_FROM GLUED(vector_from, STORED)
#define VECTOR_TO GLUED(vector_nearest, STORED)

/* 2·FLOATS elements; `differ` has bits in the words of those that are open. `largest` is raised to the bits of the largest
   magnitude. */
static inline __attribute__((always_inline)) void TILE(const uint16_t *in, const uint16_t *tuned, uint16_t *out,
                                                       const blend_16 *by, words *differ, words *largest)
{
    words found[2];
    EACH for (int v = 0; v < 2; v++)
    {
        floats w = VECTOR_FROM(in + v * FLOATS), t = VECTOR_FROM(tuned + v * FLOATS);
        floats d = t - w, back = d + w, lost = (t - back) + ((back - d) - w);
        floats p = by->near * d, q = lost_in_product(by->near, d, p);
        floats x = w + p, added = x - w, e = (w - (x - added)) + (p - added);
        floats off = size_floats(e) + size_floats(q) + by->rest * size_floats(d) + by->more * size_floats(lost);
        floats reach = off * by->wider + by->unit * size_floats(x) + by->tiny;
        words same = (words)(d == all_floats(0)), exact = (words)(off == all_floats(0));
        words small = (words)(size_floats(p) < by->small) & ~same;
        reach = (floats)((words)reach & ~exact);
        found[v] = VECTOR_TO(x - reach, x + reach, &differ[v]);
        differ[v] = (differ[v] & DIFFERENCE) | small;
        found[v] = (found[v] & ~same) | (words_at(in + v * FLOATS) & same); /* it is what it was, with its sign */
        *largest = larger_of(larger_of(*largest, (words)size_floats(x)),
                             larger_of((words)size_floats(w), (words)size_floats(t)));
    }
    *(loose_counts *)out = packed(found[0], found[1]);
}

/* Mixes `count` elements, at most PART; `open` is filled with the places of those that are open. Returns how many. */
static size_t IN_FLOAT(const uint16_t *in, const uint16_t *tuned, double alpha, size_t count, uint16_t *out, uint16_t *open,
                       words *largest)
{
    const blend_16 by = blended_by(alpha);
    size_t found = 0;
    for (size_t first = 0; first < count; first += LOOK) {
        uint16_t from[LOOK], to[LOOK], mixed[LOOK];
        const int whole = count - first >= LOOK;
        const uint16_t *w = in + first, *t = tuned + first;
        words differ[LOOK / FLOATS], any = {0};
        uint64_t some = 0; /* a bit for each element, since it cannot be foreseen where the next is open */
        if (!whole) { /* zeros after them */
            memset(from, 0, sizeof from);
            memset(to, 0, sizeof to);
            w = memcpy(from, w, (count - first) * sizeof *w);
            t = memcpy(to, t, (count - first) * sizeof *t);
        }
        for (size_t c = 0; c < LOOK; c += 2 * FLOATS)
            TILE(w + c, t + c, (whole ? out + first : mixed) + c, &by, differ + c / FLOATS, largest);
        for (size_t v = 0; v < LOOK / FLOATS; v++)
            any |= differ[v];
        if (any_set(any, ~0u))
            for (size_t v = 0; v < LOOK / FLOATS; v++)
                some |= (uint64_t)which_set(differ[v], ~0u) << v * FLOATS;
        if (!whole)
            memcpy(out + first, mixed, (count - first) * sizeof *out);
        for (; some; some &= some - 1)
            open[found++] = (uint16_t)(first + (size_t)__builtin_ctzll(some));
    }
    return found;
}

#undef TILE
#undef VECTOR_FROM
#undef VECTOR_TO
