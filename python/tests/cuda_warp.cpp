/* Runs the kernel on the CPU. A warp is 32 coroutines of one thread, which meet where CUDA says that a warp meets, and
 * between that take turns at each fence, in an order that is drawn anew each time; several warps are several threads.
 * After each piece of a lane the slot is looked at as a reader would: one that is said to be complete has to be. Not
 * shown is what a device's memory may reorder, nor the order of stores between which there is no fence. */
#include <ucontext.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../native/xla_abi.h"
#include "record.h"

#define __global__ static
#define __device__ static

namespace {

const size_t STACK = 64 << 10;

struct usp_warp {
    ucontext_t scheduler, lanes[USP_LANES];
    bool over[USP_LANES];
    int lane;                 /* that is at work */
    int arrived, meetings;    /* lanes that wait for the others; how often all have met */
    char kind;                /* of the meeting that the first of them came to */
    bool apart;               /* they came to different ones, or some to none */
    uint64_t said[USP_LANES]; /* at a shuffle */
    std::vector<char> stacks = std::vector<char>(USP_LANES * STACK);
    uint64_t drawn; /* xorshift */
};

thread_local usp_warp *warp;
std::atomic<uint64_t> clock_ns{1000};

struct {
    struct {
        operator int() const { return warp->lane; }
    } x;
} threadIdx;

uint64_t device_ns() { return clock_ns++; }

void others() { swapcontext(&warp->lanes[warp->lane], &warp->scheduler); }

void meet(char kind) {
    const int meeting = warp->meetings;
    if (warp->arrived == 0)
        warp->kind = kind;
    warp->apart |= warp->kind != kind;
    if (++warp->arrived == USP_LANES)
        warp->arrived = 0, warp->meetings++;
    while (warp->meetings == meeting)
        others();
}

template <class T> T exchange(T value, int with) {
    warp->said[warp->lane] = static_cast<uint64_t>(value);
    meet('s');
    T got = static_cast<T>(warp->said[with]);
    meet('h'); /* nobody says the next word before all have heard this one */
    return got;
}

template <class T> T __shfl_sync(unsigned, T value, int from) { return exchange(value, from); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return exchange(value, warp->lane ^ mask); }
void __syncwarp() { meet('w'); }

void __threadfence() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    others();
}

void __threadfence_system() { __threadfence(); }

uint32_t atomicCAS(uint32_t *at, uint32_t expected, uint32_t desired) {
    if (!__atomic_compare_exchange_n(at, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        std::this_thread::yield(), others();
    return expected;
}

uint32_t atomicExch(uint32_t *at, uint32_t value) { return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST); }

#include "kernel.h" /* as a part of this file */

struct launch {
    usp_control *control;
    const void *at;
    int type;
    const uint32_t *values;
    void *out;
};

thread_local const launch *launched;

void lane_main() {
    write_record(launched->control, launched->at, launched->type, launched->values, launched->out);
    warp->over[warp->lane] = true;
}

/* Whether the slot of record n, or the ring's position, says that it is complete and it is not, as doc/format/ring.md
 * has it. */
bool torn(const usp_control *c, uint64_t n) {
    const volatile uint64_t *slot = c->slots + (n & c->mask) * c->slot_words;
    const uint64_t sequence = slot[0];
    if (*c->position > n && sequence != 2 * n + 2)
        return true;
    if (sequence == 0 || sequence % 2 == 1)
        return false;
    uint32_t crc = usp_crc_bits(usp_crc_bits(~0u, sequence, 64), slot[1] & 0xffffffffu, 32);
    for (uint64_t i = 0; i < c->words; i++)
        crc = usp_crc_bits(crc, slot[2 + i], 64);
    return (slot[1] & 0xffffffffu) != 8 * c->words || slot[1] >> 32 != (~crc & 0xffffffffu);
}

/* Runs one warp to its end; returns at how many places a reader would have been deceived, if it is to look; -1 if its
 * lanes do not meet, or it does not end. */
int run(usp_warp *w, const launch *l, bool look) {
    warp = w, launched = l;
    w->arrived = w->meetings = 0, w->apart = false;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    const uint64_t n = look && l->control != nullptr ? l->control->next : 0;
    for (int i = 0; i < USP_LANES; i++) {
        getcontext(&w->lanes[i]);
        w->lanes[i].uc_stack.ss_sp = w->stacks.data() + i * STACK;
        w->lanes[i].uc_stack.ss_size = STACK;
        w->lanes[i].uc_link = &w->scheduler;
        w->over[i] = false;
        makecontext(&w->lanes[i], lane_main, 0);
    }
    int deceived = 0;
    for (int left = USP_LANES; left > 0;) {
        if (w->apart || (w->arrived > 0 && w->arrived == left && left < USP_LANES) ||
            std::chrono::steady_clock::now() > deadline)
            return -1;
        int order[USP_LANES];
        for (int i = 0; i < USP_LANES; i++) {
            w->drawn ^= w->drawn << 13, w->drawn ^= w->drawn >> 7, w->drawn ^= w->drawn << 17;
            const int j = static_cast<int>(w->drawn % (i + 1));
            order[i] = order[j], order[j] = i;
        }
        for (int i : order) {
            if (w->over[i])
                continue;
            w->lane = i;
            swapcontext(&w->scheduler, &w->lanes[i]);
            left -= w->over[i];
            deceived += look && l->control != nullptr && torn(l->control, n);
        }
    }
    return deceived;
}

} // namespace

extern "C" {

uint64_t warp_control_size() { return sizeof(usp_control); }

void warp_init(usp_control *c, unsigned char *ring, uint64_t header_len, uint64_t slot_size, uint64_t slots,
               uint64_t payload_len, int64_t clock) {
    usp_control_init(c, reinterpret_cast<volatile uint64_t *>(ring + header_len),
                     reinterpret_cast<volatile uint64_t *>(ring + 1024), slot_size, slots, payload_len, 0, 0, 0);
    c->clock = clock;
}

void warp_close(usp_control *c) { c->open = 0; }

void warp_counts(const usp_control *c, uint64_t out[3]) { out[0] = c->next, out[1] = c->late, out[2] = c->stale; }

/* One launch, as the handler's. */
int warp_run(usp_control *c, const void *at, int type, const uint32_t *values, void *out, uint64_t seed) {
    static usp_warp w;
    w.drawn = seed | 1;
    const launch l = {c, at, type, values, out};
    return run(&w, &l, true);
}

/* Programs on several streams at once: each launches so often, with the next step of all. Each value is the step.
 * Returns how many warps did not end. */
int warp_race(usp_control *c, int streams, int each) {
    std::atomic<uint64_t> next{0};
    std::atomic<int> stuck{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < streams; i++)
        threads.emplace_back([c, i, each, &next, &stuck] {
            usp_warp w;
            w.drawn = 0x9E3779B97F4A7C15u + i;
            std::vector<uint32_t> values(2 * c->words);
            for (int k = 0; k < each && stuck == 0; k++) {
                const uint64_t step = next++;
                for (size_t word = 0; word < values.size(); word += 2)
                    values[word] = static_cast<uint32_t>(step), values[word + 1] = static_cast<uint32_t>(step >> 32);
                uint64_t out;
                const launch l = {c, &step, XLA_U64, values.data(), &out};
                stuck += run(&w, &l, false) < 0;
            }
        });
    for (auto &t : threads)
        t.join();
    return stuck;
}
}
