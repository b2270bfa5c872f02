/* The part of XLA's foreign function interface, version 0.3, that a handler of usp meets: what lies at which offset of
 * the structures that the runtime passes. Names are ours; tests/test_xla.py holds sizes, offsets and numbers against
 * the header that comes with jaxlib. A structure begins with its size as the runtime knows it, so that a field beyond
 * that size is known to be missing. */
#ifndef USP_XLA_ABI_H
#define USP_XLA_ABI_H

#include <stddef.h>
#include <stdint.h>

enum {
    XLA_MAJOR = 0,
    XLA_MINOR = 3, /* what these declarations were written for; later minor versions only add */

    XLA_EXTENSION_METADATA = 1,

    XLA_STAGE_INSTANTIATE = 0,
    XLA_STAGE_EXECUTE = 3,

    XLA_IS_BUFFER = 1, /* kind of an argument and of a result */
    XLA_IS_SCALAR = 3, /* kind of an attribute */

    XLA_S32 = 4,
    XLA_S64 = 5,
    XLA_U32 = 8,
    XLA_U64 = 9,

    XLA_TRAIT_COMMAND_BUFFER = 1, /* the work a call enqueues may be captured and replayed */
};

struct xla_extension {
    size_t size;
    int32_t kind;
    struct xla_extension *next;
};

struct xla_version {
    size_t size;
    struct xla_extension *extensions;
    int32_t major, minor;
};

/* Filled in by the handler when the runtime asks what it is. */
struct xla_metadata {
    size_t size;
    struct xla_version version;
    uint32_t traits;
};

struct xla_metadata_extension {
    struct xla_extension base;
    struct xla_metadata *metadata;
};

struct xla_text {
    const char *at;
    size_t len;
};

struct xla_scalar {
    int32_t type;
    void *value;
};

struct xla_buffer {
    size_t size;
    struct xla_extension *extensions;
    int32_t type;
    void *data;
    int64_t rank;
    int64_t *dims;
};

/* Arguments and results. */
struct xla_values {
    size_t size;
    struct xla_extension *extensions;
    int64_t count;
    int32_t *kinds;
    void **values;
};

/* Attributes, sorted by name. */
struct xla_attributes {
    size_t size;
    struct xla_extension *extensions;
    int64_t count;
    int32_t *kinds;
    struct xla_text **names;
    void **values;
};

struct xla_stream_request {
    size_t size;
    struct xla_extension *extensions;
    void *context;
    void *stream; /* the answer */
};

typedef void *xla_call(void *request);

/* What the runtime offers; the beginning of it. Every call returns NULL, or an error that is the caller's. */
struct xla_api {
    size_t size;
    struct xla_extension *extensions;
    struct xla_version version;
    const void *internal;
    xla_call *error_create, *error_message, *error_destroy, *handler_register, *stream_get;
};

struct xla_frame {
    size_t size;
    struct xla_extension *extensions;
    const struct xla_api *api;
    void *context;
    int32_t stage;
    struct xla_values arguments, results;
    struct xla_attributes attributes;
};

#endif
