/* Two ways to the same sum: sixteen bytes at a time through tables, and, where the processor multiplies polynomials,
 * without any table: those would be cold in the middle of somebody's training step. */
#define _POSIX_C_SOURCE 200809L

#include "crc.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0xedb88320u /* bits reflected: the coefficient of x^31 is bit 0 */

static uint32_t table[16][256];
static int has_clmul;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (POLYNOMIAL & -(c & 1));
        table[0][i] = c;
    }
    for (int k = 1; k < 16; k++)
        for (int i = 0; i < 256; i++)
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 0xff];
#if defined(__x86_64__)
    __builtin_cpu_init();
    has_clmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#endif
}

void usp_crc_init(void) { pthread_once(&once, init); }

int usp_crc_has_clmul(void) { return has_clmul; }

static uint32_t update(uint32_t c, const unsigned char *p, size_t n) {
    for (; n >= 16; n -= 16, p += 16) {
        uint32_t w[4];
        memcpy(w, p, 16);
        w[0] ^= c;
        c = 0;
        for (int i = 0; i < 4; i++)
            c ^= table[15 - 4 * i][w[i] & 0xff] ^ table[14 - 4 * i][w[i] >> 8 & 0xff] ^
                 table[13 - 4 * i][w[i] >> 16 & 0xff] ^ table[12 - 4 * i][w[i] >> 24];
    }
    for (; n > 0; n--, p++)
        c = c >> 8 ^ table[0][(c ^ *p) & 0xff];
    return c;
}

uint32_t usp_record_crc_table(uint64_t done, const void *payload, size_t words) {
    unsigned char head[12];
    uint32_t length = (uint32_t)(8 * words);
    memcpy(head, &done, 8);
    memcpy(head + 8, &length, 4);
    return ~update(update(~0u, head, 12), payload, 8 * words);
}

#if defined(__x86_64__)

#include <immintrin.h>

/* Powers of x modulo the polynomial, reflected and shifted up by one, as the carry-less product of reflected operands
 * wants them: folding a block of 128 bits over a distance of d bits takes x^(d+32) for its first half and x^(d-32) for
 * its second. Zero bytes in front of a message change nothing once the first four bytes carry the initial value, so
 * that every message is made a whole number of blocks. */
#define X_544 0x0154442bd4 /* d = 512: four blocks */
#define X_480 0x01c6e41596
#define X_160 0x01751997d0 /* d = 128: one block */
#define X_96 0x00ccaa009e
#define X_64 0x0163cd6124
#define P_FULL 0x01db710641    /* the polynomial, with its leading term */
#define P_INVERSE 0x01f7011641 /* x^64 divided by it */

__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i x, __m128i by, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

__attribute__((target("pclmul,sse4.1"))) static uint32_t record_crc_clmul(uint64_t done, const void *payload,
                                                                          size_t words) {
    const unsigned char *p = payload;
    const __m128i one = _mm_set_epi64x(X_96, X_160), four = _mm_set_epi64x(X_480, X_544);
    const __m128i low32 = _mm_set_epi32(0, 0, 0, -1);
    uint64_t length = 8 * words, start = done ^ 0xffffffffu;
    __m128i x;
    if (words % 2 == 0) {
        x = _mm_set_epi64x((int64_t)(start >> 32 | length << 32), (int64_t)(start << 32));
    } else {
        uint64_t first;
        memcpy(&first, p, 8);
        x = _mm_set_epi64x((int64_t)(start << 32), 0);
        x = fold(x, one, _mm_set_epi64x((int64_t)first, (int64_t)(start >> 32 | length << 32)));
        p += 8;
    }
    size_t blocks = words / 2;
    if (blocks >= 8) {
        __m128i lane[4];
        lane[0] = fold(x, one, _mm_loadu_si128((const __m128i *)p));
        for (int i = 1; i < 4; i++)
            lane[i] = _mm_loadu_si128((const __m128i *)p + i);
        for (p += 64, blocks -= 4; blocks >= 4; p += 64, blocks -= 4)
            for (int i = 0; i < 4; i++)
                lane[i] = fold(lane[i], four, _mm_loadu_si128((const __m128i *)p + i));
        x = lane[0];
        for (int i = 1; i < 4; i++)
            x = fold(x, one, lane[i]);
    }
    for (; blocks > 0; p += 16, blocks--)
        x = fold(x, one, _mm_loadu_si128((const __m128i *)p));
    /* 128 bits to 64, to 32, and the remainder by multiplication with the inverse. */
    x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, one, 0x10));
    x = _mm_xor_si128(_mm_srli_si128(x, 4),
                      _mm_clmulepi64_si128(_mm_and_si128(x, low32), _mm_set_epi64x(0, X_64), 0x00));
    __m128i q = _mm_clmulepi64_si128(_mm_and_si128(x, low32), _mm_set_epi64x(0, P_INVERSE), 0x00);
    q = _mm_clmulepi64_si128(_mm_and_si128(q, low32), _mm_set_epi64x(0, P_FULL), 0x00);
    return ~(uint32_t)_mm_extract_epi32(_mm_xor_si128(x, q), 1);
}

uint32_t usp_record_crc(uint64_t done, const void *payload, size_t words) {
    return has_clmul ? record_crc_clmul(done, payload, words) : usp_record_crc_table(done, payload, words);
}

#else

uint32_t usp_record_crc(uint64_t done, const void *payload, size_t words) {
    return usp_record_crc_table(done, payload, words);
}

#endif
