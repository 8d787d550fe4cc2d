// Small kernels to test launching with.

// Writes what it was given.
extern "C" __global__ void arguments(
    unsigned* out, const unsigned* absent, unsigned word, float real, unsigned long long wide
) {
    out[0] = absent == nullptr;
    out[1] = word;
    out[2] = __float_as_uint(real);
    out[3] = (unsigned)wide;
    out[4] = (unsigned)(wide >> 32);
}

extern "C" __global__ void add(unsigned* counter, unsigned value) {
    atomicAdd(counter, value);
}

// Writes each thread's number through dynamic shared memory, from its end.
extern "C" __global__ void shared(unsigned* out, unsigned bytes) {
    extern __shared__ unsigned words[];
    unsigned last = bytes / 4 - 1;
    words[last - threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = words[last - (blockDim.x - 1 - threadIdx.x)];
}

#if __CUDA_ARCH__ >= 900
#define CLUSTER __cluster_dims__(4, 1, 1)
#else
#define CLUSTER
#endif

// Writes each block's place in its cluster, and the cluster's size.
extern "C" __global__ void CLUSTER clusters(unsigned* out) {
#if __CUDA_ARCH__ >= 900
    unsigned rank, size;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    out[blockIdx.x] = rank * 100 + size;
#endif
}

struct alignas(64) TensorMap {
    unsigned long long words[16];
};

// Copies the tile whose first element is at `row` and `column`, of 8 rows of 128 bytes, as it lies
// in shared memory.
extern "C" __global__ void tile(
    const __grid_constant__ TensorMap map, unsigned* out, unsigned row, unsigned column
) {
#if __CUDA_ARCH__ >= 900
    __shared__ alignas(1024) unsigned words[8 * 32];
    __shared__ alignas(8) unsigned long long barrier;
    unsigned to = (unsigned)__cvta_generic_to_shared(words);
    unsigned at = (unsigned)__cvta_generic_to_shared(&barrier);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" ::"r"(at) : "memory"
        );
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
            " [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(at)
            : "memory"
        );
    }
    __syncthreads();
    unsigned done = 0;
    while (!done) {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;"
            " selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(at) : "memory"
        );
    }
    for (unsigned i = threadIdx.x; i < 8 * 32; i += blockDim.x) out[i] = words[i];
#endif
}
