/* How a device writes one record into a ring (doc/format/ring.md): the part that does not depend on what runs it, so
 * that a C compiler can compile it too and the tests can run it without a GPU. A record is written by USP_LANES lanes,
 * which agree at the places marked by the caller. */
#ifndef USP_CUDA_RECORD_H
#define USP_CUDA_RECORD_H

#include <stdint.h>

#ifdef __CUDACC__
#define USP_BOTH static __host__ __device__ inline
#else
#define USP_BOTH static inline
#endif

#define USP_LANES 32
#define USP_CRC_POLYNOMIAL 0xEDB88320u

/* A ring as the device sees it. It is never freed: a captured graph may be replayed when the ring is long closed, and
 * finds open == 0. */
struct usp_control {
    uint32_t open, lock;
    volatile uint64_t *slots, *position; /* mapped host memory */
    uint64_t slot_words, mask, words;    /* words of a slot and of a payload */
    uint64_t next, last_step, has_step;
    uint64_t late, stale;
    int64_t clock; /* Unix time minus the device's timer, in ns */
    uint32_t shift[USP_LANES], shift_head;
};

/* Product of two polynomials over GF(2) modulo the CRC's, bits reflected: the top bit is the constant term. */
USP_BOTH uint32_t usp_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int i = 31; i >= 0; i--) {
        product ^= (0u - (a >> i & 1)) & b;
        b = b >> 1 ^ ((0u - (b & 1)) & USP_CRC_POLYNOMIAL);
    }
    return product;
}

/* x to the power of bits: multiplying by it appends so many zero bits to what a CRC was taken of. */
USP_BOTH uint32_t usp_power(uint64_t bits) {
    uint32_t result = 1u << 31, square = 1u << 30;
    for (; bits != 0; bits >>= 1) {
        if (bits & 1)
            result = usp_multiply(result, square);
        square = usp_multiply(square, square);
    }
    return result;
}

USP_BOTH uint32_t usp_crc_bits(uint32_t crc, uint64_t value, int bits) {
    for (int i = 0; i < bits; i++, value >>= 1)
        crc = crc >> 1 ^ ((0u - ((crc ^ (uint32_t)value) & 1)) & USP_CRC_POLYNOMIAL);
    return crc;
}

/* The words that a lane takes: first to first + count, so that lanes take all, in order. */
USP_BOTH uint64_t usp_lane_first(uint64_t words, int lane) { return words * (uint64_t)lane / USP_LANES; }

USP_BOTH void usp_control_init(struct usp_control *c, volatile uint64_t *slots, volatile uint64_t *position,
                               uint64_t slot_size, uint64_t slot_count, uint64_t payload_len, uint64_t next,
                               uint64_t has_step, uint64_t last_step) {
    c->open = 1, c->lock = 0;
    c->slots = slots, c->position = position;
    c->slot_words = slot_size / 8, c->mask = slot_count - 1, c->words = payload_len / 8;
    c->next = next, c->has_step = has_step, c->last_step = last_step;
    c->late = c->stale = 0, c->clock = 0;
    for (int lane = 0; lane < USP_LANES; lane++)
        c->shift[lane] = usp_power(64 * (c->words - usp_lane_first(c->words, lane + 1)));
    c->shift_head = usp_power(8 * payload_len);
}

/* Word i of the payload: step, time, and the fields as pairs of 32-bit words, which need not be aligned to 8. */
USP_BOTH uint64_t usp_payload_word(uint64_t i, uint64_t step, uint64_t time, const uint32_t *values) {
    return i == 0 ? step : i == 1 ? time : values[2 * i - 4] | (uint64_t)values[2 * i - 3] << 32;
}

/* Whether the record may be written; counts it otherwise. One lane calls it, holding the lock. */
USP_BOTH int usp_accept(struct usp_control *c, uint64_t step, int valid) {
    if (!c->open) {
        c->stale++;
        return 0;
    }
    if (!valid || (c->has_step && step <= c->last_step)) {
        c->late++;
        return 0;
    }
    return 1;
}

/* Stores a lane's share of the payload; returns its share of the CRC, to be combined by exclusive or. */
USP_BOTH uint32_t usp_write_share(const struct usp_control *c, volatile uint64_t *slot, uint64_t step, uint64_t time,
                                  const uint32_t *values, int lane) {
    uint32_t crc = 0;
    uint64_t end = usp_lane_first(c->words, lane + 1);
    for (uint64_t i = usp_lane_first(c->words, lane); i < end; i++) {
        uint64_t word = usp_payload_word(i, step, time, values);
        slot[2 + i] = word;
        crc = usp_crc_bits(crc, word, 64);
    }
    return usp_multiply(crc, c->shift[lane]);
}

/* The word of length and CRC. shares: those of all lanes, combined. */
USP_BOTH uint64_t usp_length_and_crc(const struct usp_control *c, uint32_t shares) {
    uint32_t head = usp_crc_bits(usp_crc_bits(~0u, 2 * c->next + 2, 64), 8 * c->words, 32);
    uint32_t crc = ~(usp_multiply(head, c->shift_head) ^ shares);
    return 8 * c->words | (uint64_t)crc << 32;
}

#endif
