/* What counting.py asks for a piece of a tensor, in one call that needs no interpreter.
 *
 * Plain C without Python's headers; counting.py loads it by ctypes. The sums are those of NumPy's twin there: a product
 * in single precision, rounded toward zero. No option that would let a compiler round otherwise is to be given.
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
    BLOCK = 1024
};

/* What counting.py holds against its own, so that a library of another version is not taken. */
const int32_t interface = 1;
const int32_t bins_on_either_side = HALF;

/* Smallest and largest value, given and returned as the bits of float32.
 *
 * With the other bits of negative numbers inverted, the order of integers is that of floats; -0.0 comes before 0.0, and
 * what is not a number lies beyond the infinities: it comes back as an extreme. `number` is at least 1.
 */
FOR_EACH_PROCESSOR void extremes(const int32_t *values, size_t number, int32_t found[2])
{
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (size_t i = 0; i < number; i++) {
        int32_t key = values[i] ^ ((values[i] >> 31) & INT32_MAX);
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    found[0] = low ^ ((low >> 31) & INT32_MAX);
    found[1] = high ^ ((high >> 31) & INT32_MAX);
}

/* Add to counts[HALF + i] how many values have trunc(value * scale) = i. `number` is below 2**32.
 *
 * Every i is to lie in (-HALF, HALF); one that does not is counted somewhere, and never outside of `counts`.
 */
FOR_EACH_PROCESSOR void count(const float *values, size_t number, float scale, int64_t counts[BINS])
{
    uint32_t tables[TABLES][BINS];
    int32_t bins[BLOCK];
    memset(tables, 0, sizeof tables);
    for (size_t start = 0; start < number; start += BLOCK) {
        size_t size = number - start < BLOCK ? number - start : BLOCK, i = 0;
        for (size_t j = 0; j < size; j++)
            bins[j] = ((int32_t)(values[start + j] * scale) + HALF) & (BINS - 1);
        for (; i + TABLES <= size; i += TABLES)
            for (size_t table = 0; table < TABLES; table++)
                tables[table][bins[i + table]]++;
        for (; i < size; i++)
            tables[0][bins[i]]++;
    }
    for (size_t bin = 0; bin < BINS; bin++)
        for (size_t table = 0; table < TABLES; table++)
            counts[bin] += tables[table][bin];
}
