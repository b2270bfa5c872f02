/* See writer.h. Writers live in a table that is never freed, so that a stale handle always finds a flag to take and
 * a generation that is not its own. */
#define _POSIX_C_SOURCE 200809L

#include "writer.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "crc.h"

#define OFF_DURATIONS 256
#define DURATIONS 93 /* then the longest of them, and their sum */
#define OFF_POSITION 1024
#define SLOT_PAYLOAD 2       /* word of a slot */
#define GENERATIONS 0x7fffff /* with 8 bits for the place in the table, a handle is a positive int */

typedef _Atomic(uint64_t) word;

_Static_assert(sizeof(word) == 8 && ATOMIC_LLONG_LOCK_FREE == 2, "a word is stored by one instruction");
_Static_assert(USP_WRITERS == 256, "a handle has eight bits for the place in the table");

enum state { FREE, OPEN, FORKED };

struct writer {
    _Alignas(128) atomic_uint flag; /* guards all of the others */
    enum state state;
    uint32_t generation;
    unsigned char *slots;
    word *position, *durations;
    uint64_t slot_size, mask, words;
    uint64_t next;
    uint64_t last_step;
    int has_step;
};

static struct writer writers[USP_WRITERS];
static atomic_uint opening; /* guards the choice of a place in the table */
static _Atomic(uint64_t) dropped;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void take(atomic_uint *flag) {
    for (unsigned tries = 1; atomic_exchange_explicit(flag, 1, memory_order_acquire); tries++) {
        while (atomic_load_explicit(flag, memory_order_relaxed)) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
            if (tries++ % 1024 == 0)
                sched_yield(); /* who holds it does not run */
        }
    }
}

static void give(atomic_uint *flag) { atomic_store_explicit(flag, 0, memory_order_release); }

/* In the child of a fork other threads are gone, whatever they held; the rings are the parent's, and not mapped. */
static void after_fork(void) {
    give(&opening);
    for (int i = 0; i < USP_WRITERS; i++) {
        if (writers[i].state == OPEN)
            writers[i].state = FORKED;
        give(&writers[i].flag);
    }
}

static void init(void) {
    usp_crc_init();
    pthread_atfork(NULL, NULL, after_fork);
}

int usp_writer_open(void *base, uint64_t header_len, uint64_t slot_size, uint64_t slots, uint64_t payload_len) {
    int handle = 0;
    pthread_once(&once, init);
    take(&opening);
    for (int i = 0; i < USP_WRITERS && handle == 0; i++) {
        struct writer *w = &writers[i];
        take(&w->flag);
        if (w->state == FREE && w->generation < GENERATIONS) {
            w->state = OPEN;
            w->generation++;
            w->slots = (unsigned char *)base + header_len;
            w->position = (word *)((unsigned char *)base + OFF_POSITION);
            w->durations = (word *)((unsigned char *)base + OFF_DURATIONS);
            w->slot_size = slot_size;
            w->mask = slots - 1;
            w->words = payload_len / 8;
            w->next = 0;
            w->has_step = 0;
            handle = (int)(w->generation << 8 | (uint32_t)i);
        }
        give(&w->flag);
    }
    give(&opening);
    return handle;
}

/* Takes the writer of a handle; NULL, and nothing taken, if it is not there. */
static struct writer *find(int handle, int *status) {
    struct writer *w = &writers[handle & 0xff];
    *status = USP_CLOSED;
    if (handle <= 0)
        return NULL;
    take(&w->flag);
    if (w->generation == (uint32_t)handle >> 8 && w->state == OPEN) {
        *status = USP_OK;
        return w;
    }
    if (w->generation == (uint32_t)handle >> 8 && w->state == FORKED)
        *status = USP_FORKED;
    give(&w->flag);
    return NULL;
}

void usp_writer_close(int handle, uint64_t *next, int64_t *has_step, uint64_t *last_step) {
    struct writer *w = &writers[handle & 0xff];
    if (handle <= 0)
        return;
    take(&w->flag);
    if (w->generation == (uint32_t)handle >> 8 && w->state != FREE) {
        if (next)
            *next = w->next, *has_step = w->has_step, *last_step = w->last_step;
        w->state = FREE;
        w->slots = NULL;
        w->position = NULL;
        w->durations = NULL;
    }
    give(&w->flag);
}

/* Writes record w->next. The sum is over what lies in the slot, if the source may change meanwhile. */
static void put(struct writer *w, const unsigned char *payload, int changing) {
    uint64_t n = w->next, done = 2 * n + 2;
    word *slot = (word *)(w->slots + (n & w->mask) * w->slot_size);
    atomic_store_explicit(&slot[0], done - 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    for (uint64_t i = 0; i < w->words; i++) {
        uint64_t v;
        memcpy(&v, payload + 8 * i, 8);
        atomic_store_explicit(&slot[SLOT_PAYLOAD + i], v, memory_order_relaxed);
    }
    const void *summed = changing ? (const void *)&slot[SLOT_PAYLOAD] : payload;
    uint64_t crc = usp_record_crc(done, summed, w->words);
    atomic_store_explicit(&slot[1], 8 * w->words | crc << 32, memory_order_relaxed);
    atomic_store_explicit(&slot[0], done, memory_order_release);
    atomic_store_explicit(w->position, n + 1, memory_order_release);
    w->next = n + 1;
}

int usp_writer_put(int handle, const void *payload, size_t n, int ordered, uint64_t *seq) {
    int status;
    struct writer *w = find(handle, &status);
    if (w == NULL)
        return status;
    uint64_t step = 0;
    if (n == w->words)
        memcpy(&step, payload, 8);
    if (n != w->words) {
        status = USP_LENGTH;
    } else if (ordered && w->has_step && step <= w->last_step) {
        status = USP_BACKWARD;
    } else {
        if (seq)
            *seq = w->next;
        put(w, payload, 0);
        if (ordered) {
            w->has_step = 1;
            w->last_step = step;
        }
    }
    give(&w->flag);
    return status;
}

int usp_writer_put_block(int handle, const void *payloads, size_t n, size_t count, uint64_t *first) {
    int status = USP_OK;
    for (size_t i = 0; i < count; i++) {
        struct writer *w = find(handle, &status);
        if (w == NULL)
            return status;
        if (n != w->words)
            status = USP_LENGTH;
        else {
            if (i == 0)
                *first = w->next;
            put(w, (const unsigned char *)payloads + 8 * n * i, 1);
        }
        give(&w->flag);
        if (status != USP_OK)
            return status;
    }
    return status;
}

int usp_writer_emit(int handle, const uint64_t *words, size_t n) {
    int status = usp_writer_put(handle, words, n, 0, NULL);
    if (status != USP_OK)
        atomic_fetch_add_explicit(&dropped, 1, memory_order_relaxed);
    return status;
}

uint64_t usp_writer_dropped(void) { return atomic_load_explicit(&dropped, memory_order_relaxed); }

int usp_writer_advance(int handle, uint64_t first, uint64_t last) {
    int status;
    struct writer *w = find(handle, &status);
    if (w == NULL)
        return status;
    if (w->has_step && first <= w->last_step) {
        status = USP_BACKWARD;
    } else {
        w->has_step = 1;
        w->last_step = last;
    }
    give(&w->flag);
    return status;
}

uint64_t usp_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Four words to each doubling, as doc/format/ring.md has it. */
static unsigned duration_word(uint64_t ns) {
    if (ns < 4)
        return (unsigned)ns;
    if (ns >> 24)
        return DURATIONS - 1;
    unsigned shift = 61 - (unsigned)__builtin_clzll(ns);
    return 4 * shift + (unsigned)(ns >> shift);
}

static void add(word *w, uint64_t v) {
    atomic_store_explicit(w, atomic_load_explicit(w, memory_order_relaxed) + v, memory_order_relaxed);
}

void usp_writer_took(int handle, uint64_t ns) {
    int status;
    struct writer *w = find(handle, &status);
    if (w == NULL)
        return;
    word *longest = &w->durations[DURATIONS];
    add(&w->durations[duration_word(ns)], 1);
    add(&w->durations[DURATIONS + 1], ns);
    if (ns > atomic_load_explicit(longest, memory_order_relaxed))
        atomic_store_explicit(longest, ns, memory_order_relaxed);
    give(&w->flag);
}

int usp_writer_position(int handle, uint64_t *next, int64_t *has_step, uint64_t *last_step) {
    int status;
    struct writer *w = find(handle, &status);
    if (w == NULL)
        return status;
    *next = w->next, *has_step = w->has_step, *last_step = w->last_step;
    give(&w->flag);
    return status;
}
