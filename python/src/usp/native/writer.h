/* Writes records into a ring that is mapped already (doc/format/ring.md). No Python here.
 *
 * A writer is found by its handle, a small positive number that is never given out twice. Every function may be called
 * from any thread, with or without an interpreter's lock. A handle whose ring was closed, or that belongs to the
 * process that this one was forked from, is safe to use: the record is dropped and counted.
 *
 * Writers of one process keep apart by a flag that is held for the writing of one slot: no system call, no wait for
 * anything outside of this process. Nothing that the consumer writes is ever read. */
#ifndef USP_WRITER_H
#define USP_WRITER_H

#include <stddef.h>
#include <stdint.h>

#define USP_WRITERS 256 /* open at one time */

enum usp_status {
    USP_OK = 0,
    USP_BACKWARD, /* the step is not above the last one */
    USP_CLOSED,   /* stale handle */
    USP_FORKED,   /* the ring belongs to the process that this one was forked from */
    USP_LENGTH,   /* another number of words than the ring's records have */
};

/* Makes a writer of the ring mapped at base, which stays mapped until usp_writer_close has returned. Returns its
 * handle, 0 if there are too many. The caller has checked the geometry. */
int usp_writer_open(void *base, uint64_t header_len, uint64_t slot_size, uint64_t slots, uint64_t payload_len);

/* Waits for a record that is being written and makes the handle stale. *next (may be NULL) becomes the number of
 * records emitted, *last_step the last step. A stale handle changes nothing. */
void usp_writer_close(int handle, uint64_t *next, int64_t *has_step, uint64_t *last_step);

/* For compiled programs: writes one record of n words: step, time, fields. Does not look at the order of steps.
 * Anything but USP_OK is a drop, counted in usp_writer_dropped. */
int usp_writer_emit(int handle, const uint64_t *words, size_t n);

/* Number of records that usp_writer_emit has dropped in this process. */
uint64_t usp_writer_dropped(void);

/* The same with what the Python side needs. ordered: refuse a step (the first word) that is not above the last one.
 * *seq (may be NULL) becomes the number of the record. Counts nothing. */
int usp_writer_put(int handle, const void *payload, size_t n, int ordered, uint64_t *seq);

/* Writes count records that lie one after the other; others may come between them. *first becomes the number of the
 * first. */
int usp_writer_put_block(int handle, const void *payloads, size_t n, size_t count, uint64_t *first);

/* Takes first to last as the last steps, if they are above those before. */
int usp_writer_advance(int handle, uint64_t first, uint64_t last);

/* Counts, for whoever looks at the run, that handing over a record took the loop so many nanoseconds. */
void usp_writer_took(int handle, uint64_t ns);

/* Whether a loop's nth record, from 0, is one whose handing over is timed: enough of them to tell, and so few that the
 * two looks at the clock do not show. */
static inline int usp_timed(uint64_t n) { return n < 1024 || n % 256 == 0; }

/* Nanoseconds of a clock that only goes forward. */
uint64_t usp_clock(void);

/* The number of records emitted, and the last step, if there was one. */
int usp_writer_position(int handle, uint64_t *next, int64_t *has_step, uint64_t *last_step);

#endif
