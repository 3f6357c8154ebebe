/* What counting.py asks for a piece of a tensor, in one call that needs no interpreter.
 *
 * C for GCC and Clang, without Python's headers; counting.py loads it by ctypes. The sums are those of NumPy's twin
 * there: a product in single precision, rounded toward zero. No option that would let a compiler round otherwise is to
 * be given.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef FOR_EACH_PROCESSOR
/* As the command line has it. */
#elif defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
/* Compiled several times over; the loader takes what the processor has. */
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

enum {
    HALF = 4096, /* as in counting.py */
    BINS = 2 * HALF,
    TABLES = 2, /* a processor that adds to one element twice in a row waits for the first sum */
    BLOCK = 1024,
    LINE = 16, /* values in a line of a processor's cache */
    /* Values to fetch early: the processor's own prefetcher stops at the end of a page. */
    AHEAD = 2 * BLOCK
};

/* What counting.py holds against its own, so that a library of another version is not taken. */
const int32_t interface = 2;
const int32_t bins_on_either_side = HALF;

/* The bits of a float32 with those of negative numbers, but for the sign, inverted; or back from there.
 *
 * The order of these integers is that of the floats; -0.0 comes before 0.0, and what is not a number lies beyond the
 * infinities.
 */
static inline int32_t ordered(int32_t bits)
{
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static inline float value_of(int32_t key)
{
    int32_t bits = ordered(key);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Add to counts[HALF + i] how many values have trunc(value * scale) = i, up to the first block of values with one that
 * has an i outside of (-HALF, HALF) or is not a number. Return how many were counted; in `found`, the smallest and the
 * largest of all values, or what is not a number.
 *
 * `number` is at least 1 and below 2**32; `scale` is a power of two.
 */
FOR_EACH_PROCESSOR size_t count(const float *values, size_t number, float scale, int64_t counts[BINS], float found[2])
{
    uint32_t tables[TABLES][BINS];
    int32_t bits[BLOCK], bins[BLOCK], low = INT32_MAX, high = INT32_MIN;
    const float limit = HALF / scale;
    size_t counted = number;
    memset(tables, 0, sizeof tables);
    for (size_t start = 0; start < number; start += BLOCK) {
        size_t size = number - start < BLOCK ? number - start : BLOCK, i = 0;
        int32_t least = INT32_MAX, most = INT32_MIN;
        for (size_t j = start + AHEAD; j < start + AHEAD + BLOCK && j < number; j += LINE)
            __builtin_prefetch(values + j);
        memcpy(bits, values + start, size * sizeof *values);
        for (size_t j = 0; j < size; j++) {
            int32_t key = ordered(bits[j]);
            least = key < least ? key : least;
            most = key > most ? key : most;
        }
        low = least < low ? least : low;
        high = most > high ? most : high;
        if (counted == number && !(value_of(least) > -limit && value_of(most) < limit))
            counted = start;
        if (counted != number)
            continue;
        for (size_t j = 0; j < size; j++)
            bins[j] = ((int32_t)(values[start + j] * scale) + HALF) & (BINS - 1);
        for (; i + TABLES <= size; i += TABLES)
            for (size_t table = 0; table < TABLES; table++)
                tables[table][bins[i + table]]++;
        for (; i < size; i++)
            tables[0][bins[i]]++;
    }
    found[0] = value_of(low);
    found[1] = value_of(high);
    for (size_t bin = 0; bin < BINS; bin++)
        for (size_t table = 0; table < TABLES; table++)
            counts[bin] += tables[table][bin];
    return counted;
}
