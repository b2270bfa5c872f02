/* See convert.h. */
#include "convert.h"

#include <string.h>

int usp_convertible(enum usp_kind kind, size_t size, enum usp_type type) {
    switch (kind) {
    case USP_FLOAT:
        return (type == USP_F64 && (size == 8 || size == 4 || size == 2)) ||
               (type == USP_F32 && (size == 4 || size == 2));
    case USP_BFLOAT:
        return size == 2 && (type == USP_F64 || type == USP_F32);
    case USP_SIGNED:
    case USP_UNSIGNED:
        return size == 1 || size == 2 || size == 4 || size == 8;
    default:
        return 0;
    }
}

uint64_t usp_float_word(double x, enum usp_type type) {
    uint64_t w;
    if (type == USP_F32)
        x = (float)x;
    memcpy(&w, &x, 8);
    return w;
}

uint64_t usp_widen(uint32_t bits, size_t size) {
    unsigned exponent_bits = size == 4 ? 8 : 5, mantissa_bits = size == 4 ? 23 : 10;
    uint32_t top = (1u << exponent_bits) - 1, exponent = bits >> mantissa_bits & top;
    uint64_t mantissa = bits & ((1u << mantissa_bits) - 1);
    uint64_t sign = (uint64_t)(bits >> (exponent_bits + mantissa_bits) & 1) << 63, wide = exponent + 1023 - (top >> 1);
    if (exponent == top) {
        wide = 2047;
    } else if (exponent == 0 && mantissa == 0) {
        wide = 0;
    } else if (exponent == 0) { /* the leading one becomes the implicit one */
        wide++;
        for (; !(mantissa >> mantissa_bits); mantissa <<= 1)
            wide--;
        mantissa &= (1u << mantissa_bits) - 1;
    }
    return sign | wide << 52 | mantissa << (52 - mantissa_bits);
}

static double half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, fraction = h & 0x3ff, bits;
    float f;
    if (exponent == 0) {
        f = (float)fraction * 0x1p-24f;
        memcpy(&bits, &f, 4);
    } else {
        bits = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

static double load_float(const unsigned char *b, enum usp_kind kind, size_t size) {
    uint16_t u16;
    if (size == 8) {
        double d;
        memcpy(&d, b, 8);
        return d;
    }
    if (size == 4) {
        float f;
        memcpy(&f, b, 4);
        return f;
    }
    memcpy(&u16, b, 2);
    if (kind == USP_BFLOAT) {
        uint32_t bits = (uint32_t)u16 << 16;
        float f;
        memcpy(&f, &bits, 4);
        return f;
    }
    return half(u16);
}

/* An integer as its 64 bits; *negative says how to read them. */
static uint64_t load_integer(const unsigned char *b, enum usp_kind kind, size_t size, int *negative) {
    uint64_t v = 0;
    memcpy(&v, b, size);
    *negative = kind == USP_SIGNED && v >> (8 * size - 1);
    if (*negative && size < 8)
        v |= ~(uint64_t)0 << (8 * size);
    return v;
}

int usp_convert(uint64_t *words, const void *elements, ptrdiff_t stride, size_t n, enum usp_kind kind, size_t size,
                int swapped, enum usp_type type) {
    const unsigned char *p = elements;
    if (kind == USP_FLOAT && size == 8 && stride == 8 && !swapped && type == USP_F64) {
        memcpy(words, p, 8 * n);
        return 0;
    }
    for (size_t i = 0; i < n; i++, p += stride) {
        unsigned char b[8];
        memcpy(b, p, size);
        if (swapped)
            for (size_t k = 0; k < size / 2; k++) {
                unsigned char t = b[k];
                b[k] = b[size - 1 - k];
                b[size - 1 - k] = t;
            }
        if (kind == USP_FLOAT || kind == USP_BFLOAT) {
            words[i] = usp_float_word(load_float(b, kind, size), type);
            continue;
        }
        int negative;
        uint64_t v = load_integer(b, kind, size, &negative);
        if (type == USP_F64 || type == USP_F32) {
            /* Straight to the narrower type: rounded twice it could be another number. */
            if (type == USP_F32)
                words[i] = usp_float_word(negative ? (float)(int64_t)v : (float)v, type);
            else
                words[i] = usp_float_word(negative ? (double)(int64_t)v : (double)v, type);
            continue;
        }
        if (type == USP_U64 ? negative : !negative && v >> 63)
            return 1;
        words[i] = v;
    }
    return 0;
}
