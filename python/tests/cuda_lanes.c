/* Writes a record as the device does, its lanes one after the other. */
#include "record.h"

void lanes_init(struct usp_control *c, unsigned char *ring, uint64_t header_len, uint64_t slot_size, uint64_t slots,
                uint64_t payload_len) {
    usp_control_init(c, (volatile uint64_t *)(ring + header_len), (volatile uint64_t *)(ring + 1024), slot_size, slots,
                     payload_len, 0, 0, 0);
}

uint64_t lanes_size(void) { return sizeof(struct usp_control); }

void lanes_close(struct usp_control *c) { c->open = 0; }

void lanes_counts(const struct usp_control *c, uint64_t out[2]) { out[0] = c->late, out[1] = c->stale; }

int lanes_write(struct usp_control *c, uint64_t step, uint64_t time, const uint32_t *values) {
    if (!usp_accept(c, step, 1))
        return 0;
    uint64_t n = c->next;
    volatile uint64_t *slot = c->slots + (n & c->mask) * c->slot_words;
    uint32_t crc = 0;
    slot[0] = 2 * n + 1;
    for (int lane = USP_LANES - 1; lane >= 0; lane--)
        crc ^= usp_write_share(c, slot, step, time, values, lane);
    slot[1] = usp_length_and_crc(c, crc);
    slot[0] = 2 * n + 2;
    *c->position = n + 1;
    c->next = n + 1, c->has_step = 1, c->last_step = step;
    return 1;
}
