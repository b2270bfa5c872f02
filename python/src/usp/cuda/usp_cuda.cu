/* The handler by which a program compiled by XLA for CUDA writes records: it enqueues one kernel of one warp, which
 * stores the record into the ring itself, in host memory that is registered and mapped. No callback to the host, no
 * synchronisation; the work is the same at each call, so it may be captured into a graph and replayed. */
#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "../native/xla_abi.h"
#include "record.h"

#define RINGS 256

namespace {

struct ring {
    int handle = 0; /* 0: free */
    int device = 0;
    void *registered = nullptr;
    usp_control *control = nullptr; /* device memory, never freed */
};

ring rings[RINGS];
std::mutex guard; /* of rings */
std::atomic<unsigned long long> stale{0}, malformed{0}, elsewhere{0};

__device__ uint64_t device_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

#include "kernel.h" /* as a part of this file */

__global__ void read_timer(uint64_t *out) { *out = device_ns(); }

usp_control *find(int handle) {
    std::lock_guard<std::mutex> held(guard);
    const ring &r = rings[handle & (RINGS - 1)];
    int device = -1;
    if (handle == 0 || r.handle != handle) {
        stale++;
        return nullptr;
    }
    if (cudaGetDevice(&device) != cudaSuccess || device != r.device) {
        elsewhere++; /* the ring belongs to one device; the others only pass the step on */
        return nullptr;
    }
    return r.control;
}

void describe(const xla_frame *frame, xla_metadata *metadata) {
    const xla_api *api = frame->api;
    const bool known = api != nullptr && api->size >= offsetof(xla_api, stream_get) + sizeof api->stream_get &&
                       api->version.major == XLA_MAJOR && api->version.minor >= XLA_MINOR;
    metadata->version.major = known ? XLA_MAJOR : -1;
    metadata->version.minor = known ? XLA_MINOR : -1;
    metadata->traits = XLA_TRAIT_COMMAND_BUFFER;
}

bool is_call(const xla_frame *f) {
    if (f->size < sizeof *f || f->arguments.count != 2 || f->results.count != 1 || f->attributes.count != 2)
        return false;
    return f->arguments.kinds[0] == XLA_IS_BUFFER && f->arguments.kinds[1] == XLA_IS_BUFFER &&
           f->results.kinds[0] == XLA_IS_BUFFER && f->attributes.kinds[0] == XLA_IS_SCALAR;
}

const char *fault(char *text, size_t size, const char *what, cudaError_t e) {
    std::snprintf(text, size, "%s: %s", what, cudaGetErrorString(e));
    return text;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void *usp_cuda_handler(xla_frame *frame) {
    for (xla_extension *e = frame->extensions; e != nullptr; e = e->next) {
        if (e->kind == XLA_EXTENSION_METADATA) {
            describe(frame, reinterpret_cast<xla_metadata_extension *>(e)->metadata);
            return nullptr;
        }
    }
    if (frame->stage != XLA_STAGE_EXECUTE)
        return nullptr;
    if (!is_call(frame)) {
        malformed++;
        return nullptr;
    }
    const auto *at = static_cast<const xla_buffer *>(frame->arguments.values[0]);
    const auto *values = static_cast<const xla_buffer *>(frame->arguments.values[1]);
    const auto *out = static_cast<const xla_buffer *>(frame->results.values[0]);
    const auto *whose = static_cast<const xla_scalar *>(frame->attributes.values[0]);
    const bool integer = at->type == XLA_S32 || at->type == XLA_U32 || at->type == XLA_S64 || at->type == XLA_U64;
    if (!integer || out->type != at->type || values->type != XLA_U32 || values->rank != 1 || whose->type != XLA_S32) {
        malformed++;
        return nullptr;
    }
    xla_stream_request request = {sizeof request, nullptr, frame->context, nullptr};
    if (void *error = frame->api->stream_get(&request))
        return error; /* the runtime's own: it knows better than we whether to go on */
    int32_t handle;
    std::memcpy(&handle, whose->value, sizeof handle);
    write_record<<<1, USP_LANES, 0, static_cast<cudaStream_t>(request.stream)>>>(
        find(handle), at->data, at->type, static_cast<const uint32_t *>(values->data), out->data);
    if (cudaGetLastError() != cudaSuccess)
        malformed++;
    return nullptr;
}

/* Registers the mapped ring with the current device and hands it over: from now on only the device writes. Returns
 * NULL, or what went wrong, in text. */
EXPORT const char *usp_cuda_attach(int handle, void *base, uint64_t size, uint64_t header_len, uint64_t slot_size,
                                   uint64_t slot_count, uint64_t payload_len, uint64_t next, uint64_t has_step,
                                   uint64_t last_step, int64_t unix_ns, char *text, size_t text_size) {
    std::lock_guard<std::mutex> held(guard);
    ring &r = rings[handle & (RINGS - 1)];
    if (r.handle != 0)
        return "a ring in the same place is still with the device";
    int device;
    cudaError_t e = cudaGetDevice(&device);
    if (e != cudaSuccess)
        return fault(text, text_size, "no CUDA device", e);
    e = cudaHostRegister(base, size, cudaHostRegisterMapped | cudaHostRegisterPortable);
    if (e != cudaSuccess)
        return fault(text, text_size, "the ring cannot be registered with the device", e);
    void *mapped = nullptr;
    uint64_t *timer = nullptr, now = 0;
    usp_control *control = nullptr, init;
    const char *what = "the ring cannot be mapped";
    if ((e = cudaHostGetDevicePointer(&mapped, base, 0)) == cudaSuccess) {
        what = "no device memory";
        e = cudaMalloc(&control, sizeof *control);
    }
    if (e == cudaSuccess)
        e = cudaMalloc(&timer, sizeof *timer);
    if (e == cudaSuccess) {
        what = "the device's clock cannot be read";
        read_timer<<<1, 1>>>(timer);
        e = cudaMemcpy(&now, timer, sizeof now, cudaMemcpyDeviceToHost);
    }
    if (e == cudaSuccess) {
        auto *at = static_cast<unsigned char *>(mapped);
        usp_control_init(&init, reinterpret_cast<volatile uint64_t *>(at + header_len),
                         reinterpret_cast<volatile uint64_t *>(at + 1024), slot_size, slot_count, payload_len, next,
                         has_step, last_step);
        init.clock = unix_ns - static_cast<int64_t>(now);
        what = "the control block cannot be written";
        e = cudaMemcpy(control, &init, sizeof init, cudaMemcpyHostToDevice);
    }
    cudaFree(timer);
    if (e != cudaSuccess) {
        cudaFree(control);
        cudaHostUnregister(base);
        return fault(text, text_size, what, e);
    }
    r.handle = handle, r.device = device, r.registered = base, r.control = control;
    return nullptr;
}

/* Takes a ring back once the device has finished what it was given; next, has_step, last_step, late as the device left
 * them. Graphs that are replayed later find it closed. The caller may unmap the ring afterwards. */
EXPORT const char *usp_cuda_detach(int handle, uint64_t out[4], char *text, size_t text_size) {
    ring was;
    {
        std::lock_guard<std::mutex> held(guard);
        ring &r = rings[handle & (RINGS - 1)];
        if (r.handle != handle)
            return "the ring is not with the device";
        was = r;
        r = ring();
    }
    cudaError_t e = cudaSetDevice(was.device);
    uint32_t closed = 0;
    usp_control last;
    if (e == cudaSuccess)
        e = cudaMemcpy(&was.control->open, &closed, sizeof closed, cudaMemcpyHostToDevice);
    if (e == cudaSuccess)
        e = cudaDeviceSynchronize(); /* a record that was begun before is finished */
    if (e == cudaSuccess)
        e = cudaMemcpy(&last, was.control, sizeof last, cudaMemcpyDeviceToHost);
    if (e != cudaSuccess) /* the ring stays registered, and mapped: the device may still write */
        return fault(text, text_size, "the device does not give the ring back", e);
    cudaHostUnregister(was.registered);
    out[0] = last.next, out[1] = last.has_step, out[2] = last.last_step, out[3] = last.late;
    return nullptr;
}

EXPORT void usp_cuda_counts(unsigned long long out[3]) { out[0] = stale, out[1] = malformed, out[2] = elsewhere; }

/* Number of devices, or -1 and why there is none. */
EXPORT int usp_cuda_devices(char *text, size_t text_size) {
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaSuccess && count > 0)
        return count;
    std::snprintf(text, text_size, "%s", e == cudaSuccess ? "there is no CUDA device" : cudaGetErrorString(e));
    return -1;
}
