/* See xla.h. One call writes one record: the attribute `handle` says into which ring, operand 0 is the step, an
 * integer scalar, operand 1 the words of the fields as pack() makes them. Result 0 is the step again: who uses it runs
 * after the record was written. A record that cannot be written is dropped and counted; no call ever fails, since a
 * failing call would end the program that is observed.
 *
 * A program for several devices makes the call on each of them. The first to come writes the step; with the attribute
 * `shared` the others are counted as repeats and not as drops. */
#define _POSIX_C_SOURCE 200809L

#include "xla.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "writer.h"
#include "xla_abi.h"

#define ON_STACK 512 /* words of a record that is put together on the stack */

/* Of the ring whose handle is `handle`; a later ring in the same place of the writers' table begins anew. */
struct counts {
    _Atomic(uint64_t) late, repeats;
    atomic_int handle;
};

static struct counts counts[USP_WRITERS];
static _Atomic(uint64_t) stale, malformed;
static _Atomic(uint64_t) calls;
static atomic_int runtime_major = -1, runtime_minor = -1;

static void count(int handle, int shared, int status) {
    struct counts *c = &counts[handle & (USP_WRITERS - 1)];
    if (status == USP_BACKWARD) {
        if (atomic_exchange(&c->handle, handle) != handle) {
            atomic_store(&c->late, 0);
            atomic_store(&c->repeats, 0);
        }
        atomic_fetch_add(shared ? &c->repeats : &c->late, 1);
    } else if (status == USP_LENGTH) {
        atomic_fetch_add(&malformed, 1);
    } else if (status != USP_OK) {
        atomic_fetch_add(&stale, 1);
    }
}

/* Answers the question what this handler is. A runtime of another kind is told a version that it refuses. */
static void describe(const struct xla_frame *frame, struct xla_metadata *metadata) {
    int major = -1, minor = -1;
    if (frame->api != NULL && frame->api->size >= offsetof(struct xla_api, internal))
        major = frame->api->version.major, minor = frame->api->version.minor;
    atomic_store(&runtime_major, major);
    atomic_store(&runtime_minor, minor);
    int known = major == XLA_MAJOR && minor >= XLA_MINOR;
    metadata->version.major = known ? XLA_MAJOR : -1;
    metadata->version.minor = known ? XLA_MINOR : -1;
    metadata->traits = 0;
}

static int read_step(const struct xla_buffer *b, uint64_t *step) {
    int64_t wide;
    int32_t narrow;
    switch (b->type) {
    case XLA_S32:
        memcpy(&narrow, b->data, 4);
        *step = (uint64_t)(int64_t)narrow;
        return narrow >= 0;
    case XLA_U32:
        memcpy(&narrow, b->data, 4);
        *step = (uint32_t)narrow;
        return 1;
    case XLA_S64:
        memcpy(&wide, b->data, 8);
        *step = (uint64_t)wide;
        return wide >= 0;
    case XLA_U64:
        memcpy(step, b->data, 8);
        return 1;
    }
    return -1;
}

static int write_record(int handle, uint64_t step, const void *values, size_t words) {
    uint64_t on_stack[ON_STACK], *record = on_stack;
    struct timespec now;
    if (words + 2 > ON_STACK && (record = malloc(8 * (words + 2))) == NULL)
        return USP_LENGTH;
    clock_gettime(CLOCK_REALTIME, &now);
    int timed = usp_timed(atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed));
    uint64_t began = timed ? usp_clock() : 0;
    record[0] = step;
    record[1] = (uint64_t)((int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    memcpy(record + 2, values, 8 * words);
    int status = usp_writer_put(handle, record, words + 2, 1, NULL);
    if (timed && status == USP_OK)
        usp_writer_took(handle, usp_clock() - began);
    if (record != on_stack)
        free(record);
    return status;
}

static int is_call(const struct xla_frame *f) {
    return f->size >= sizeof *f && f->arguments.count == 2 && f->results.count == 1 && f->attributes.count == 2 &&
           f->arguments.kinds[0] == XLA_IS_BUFFER && f->arguments.kinds[1] == XLA_IS_BUFFER &&
           f->results.kinds[0] == XLA_IS_BUFFER && f->attributes.kinds[0] == XLA_IS_SCALAR &&
           f->attributes.kinds[1] == XLA_IS_SCALAR;
}

static void *handler(struct xla_frame *frame) {
    for (struct xla_extension *e = frame->extensions; e != NULL; e = e->next) {
        if (e->kind == XLA_EXTENSION_METADATA) {
            describe(frame, ((struct xla_metadata_extension *)e)->metadata);
            return NULL;
        }
    }
    if (frame->stage != XLA_STAGE_EXECUTE)
        return NULL;
    if (!is_call(frame)) {
        atomic_fetch_add(&malformed, 1);
        return NULL;
    }
    const struct xla_buffer *at = frame->arguments.values[0], *values = frame->arguments.values[1];
    const struct xla_buffer *out = frame->results.values[0];
    const struct xla_scalar *whose = frame->attributes.values[0], *several = frame->attributes.values[1];
    uint64_t step = 0;
    int32_t handle, shared;
    int valid = read_step(at, &step);
    if (valid < 0 || out->type != at->type || values->type != XLA_U32 || values->rank != 1 || values->dims[0] % 2 ||
        whose->type != XLA_S32 || several->type != XLA_S32) {
        atomic_fetch_add(&malformed, 1);
        return NULL;
    }
    /* The result first: whatever becomes of the record, the program goes on with the right step. */
    if (out->data != at->data)
        memcpy(out->data, at->data, at->type == XLA_S32 || at->type == XLA_U32 ? 4 : 8);
    memcpy(&handle, whose->value, sizeof handle);
    memcpy(&shared, several->value, sizeof shared);
    count(handle, shared, valid ? write_record(handle, step, values->data, (size_t)values->dims[0] / 2) : USP_BACKWARD);
    return NULL;
}

static PyObject *xla_counts(PyObject *self, PyObject *arg) {
    (void)self;
    long handle = PyLong_AsLong(arg);
    if (handle == -1 && PyErr_Occurred())
        return NULL;
    struct counts *c = &counts[handle & (USP_WRITERS - 1)];
    int ours = atomic_load(&c->handle) == (int)handle;
    return Py_BuildValue("KKKK", (unsigned long long)(ours ? atomic_load(&c->late) : 0),
                         (unsigned long long)(ours ? atomic_load(&c->repeats) : 0),
                         (unsigned long long)atomic_load(&stale), (unsigned long long)atomic_load(&malformed));
}

static PyObject *xla_version(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return Py_BuildValue("((ii)(ii))", XLA_MAJOR, XLA_MINOR, atomic_load(&runtime_major), atomic_load(&runtime_minor));
}

static PyMethodDef methods[] = {
    {"xla_counts", xla_counts, METH_O,
     "xla_counts(handle) -> (late, repeats, stale, malformed)\n\nRecords that compiled programs did not write: the\n"
     "step did not increase in this ring; another device had written it; the ring was closed (any ring); the call was\n"
     "not understood (any ring)."},
    {"xla_version", xla_version, METH_NOARGS,
     "xla_version() -> ((major, minor) of the interface known here, (major, minor) of the runtime that asked last)."},
    {NULL, NULL, 0, NULL},
};

int usp_xla_add(PyObject *module) {
    void *(*entry)(struct xla_frame *) = handler;
    void *address;
    memcpy(&address, &entry, sizeof address); /* ISO C has no cast from a function to void * */
    PyObject *capsule = PyCapsule_New(address, NULL, NULL);
    if (capsule == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "xla_handler", capsule);
    Py_DECREF(capsule);
    return failed ? -1 : PyModule_AddFunctions(module, methods);
}
