/* The kernel that writes one record into a ring, in the words of CUDA: to be included where these, device_ns(), record.h
 * and native/xla_abi.h are there. usp_cuda.cu is compiled for a device; tests/cuda_warp.cpp runs it on the CPU. */

__device__ bool load_step(const void *at, int type, uint64_t *step) {
    switch (type) {
    case XLA_S32: {
        int32_t v = *static_cast<const int32_t *>(at);
        *step = static_cast<uint64_t>(static_cast<int64_t>(v));
        return v >= 0;
    }
    case XLA_U32:
        *step = *static_cast<const uint32_t *>(at);
        return true;
    case XLA_S64: {
        int64_t v = *static_cast<const int64_t *>(at);
        *step = static_cast<uint64_t>(v);
        return v >= 0;
    }
    default:
        *step = *static_cast<const uint64_t *>(at);
        return true;
    }
}

/* One warp. control may be null: then the step is passed on and nothing is written. */
__global__ void write_record(usp_control *c, const void *at, int type, const uint32_t *values, void *out) {
    const unsigned all = 0xffffffffu;
    const int lane = threadIdx.x;
    uint64_t step = 0, time = 0;
    int accepted = 0;
    if (lane == 0) {
        const bool valid = load_step(at, type, &step);
        if (out != at) {
            if (type == XLA_S32 || type == XLA_U32)
                *static_cast<uint32_t *>(out) = *static_cast<const uint32_t *>(at);
            else
                *static_cast<uint64_t *>(out) = *static_cast<const uint64_t *>(at);
        }
        if (c != nullptr) {
            while (atomicCAS(&c->lock, 0u, 1u) != 0u) /* programs on other streams */
                ;
            __threadfence();
            accepted = usp_accept(c, step, valid);
            time = device_ns() + static_cast<uint64_t>(c->clock);
            if (!accepted) {
                __threadfence();
                atomicExch(&c->lock, 0u);
            }
        }
    }
    if (!__shfl_sync(all, accepted, 0))
        return;
    step = __shfl_sync(all, static_cast<unsigned long long>(step), 0);
    time = __shfl_sync(all, static_cast<unsigned long long>(time), 0);
    const uint64_t n = __shfl_sync(all, static_cast<unsigned long long>(c->next), 0);
    volatile uint64_t *slot = c->slots + (n & c->mask) * c->slot_words;
    if (lane == 0) {
        slot[0] = 2 * n + 1;
        __threadfence_system();
    }
    __syncwarp();
    uint32_t crc = usp_write_share(c, slot, step, time, values, lane);
    for (int distance = USP_LANES / 2; distance > 0; distance /= 2)
        crc ^= __shfl_xor_sync(all, crc, distance);
    __threadfence_system(); /* each lane's stores, before the slot is said to be complete */
    __syncwarp();
    if (lane == 0) {
        slot[1] = usp_length_and_crc(c, crc);
        __threadfence_system();
        slot[0] = 2 * n + 2;
        __threadfence_system();
        *c->position = n + 1;
        c->next = n + 1;
        c->has_step = 1;
        c->last_step = step;
        __threadfence();
        atomicExch(&c->lock, 0u);
    }
}
