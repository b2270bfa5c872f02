/* From the elements of a buffer to the words of a record. No Python here. */
#ifndef USP_CONVERT_H
#define USP_CONVERT_H

#include <stddef.h>
#include <stdint.h>

enum usp_type { USP_F64, USP_F32, USP_I64, USP_U64 }; /* of a field */
enum usp_kind {
    USP_FLOAT,
    USP_SIGNED,
    USP_UNSIGNED,
    USP_BFLOAT,
    USP_NO_KIND
}; /* of an element, with its size in bytes */

/* Whether elements of that kind and size may go into a field of that type at all: integers into floats (rounded) and
 * integers, floats into floats that are no narrower. */
int usp_convertible(enum usp_kind kind, size_t size, enum usp_type type);

/* Converts n elements that lie stride bytes apart; swapped: of the other byte order. Returns 0, or 1 if an integer does
 * not fit the type. What is not convertible must not be asked for. */
int usp_convert(uint64_t *words, const void *elements, ptrdiff_t stride, size_t n, enum usp_kind kind, size_t size,
                int swapped, enum usp_type type);

/* The bits of the float64 equal to a narrow float, by integers only: no unit that flushes subnormals or quiets NaNs sees
 * the value. size: 4, or 2 for IEEE's half. */
uint64_t usp_widen(uint32_t bits, size_t size);

/* The word of a float in a field. */
uint64_t usp_float_word(double x, enum usp_type type);

#endif
