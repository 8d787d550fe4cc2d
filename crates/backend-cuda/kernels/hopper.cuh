// Wrappers of the PTX that only sm_90a has; follows prelude.cuh.
//
// - mbarriers: counted arrivals and bytes, waited for by the parity of a phase, and rings of them
// - TMA: copies of boxes between tensors in device memory and shared memory, swizzled by 128 bytes
// - clusters: ranks, barriers, addresses in the other blocks' shared memory
// - wgmma: D[64, N] += A[64, K] * B[N, K]^T by 128 threads, K of 32 bytes, operands in shared
//   memory or A in registers
// - stmatrix, ldmatrix, setmaxnreg
//
// The choice: one instruction per function, named after it; addresses in shared memory are u32.
// From NVIDIA's PTX ISA 8.x: "Asynchronous Warpgroup Level Matrix Instructions", "Tensors",
// "Parallel Synchronization and Communication Instructions: mbarrier".

// What cuTensorMapEncodeTiled fills in; passed as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    u8 bytes[128];
};

constexpr int WARPGROUP = 128;
// Bytes of one row of a box, and what its swizzle repeats over: 8 such rows.
constexpr u32 SWIZZLE_ROW = 128;
constexpr u32 SWIZZLE_ATOM = 8 * SWIZZLE_ROW;

// ---- mbarriers ----

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

// Makes initialised barriers visible to the copy engine and to the cluster.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// `barrier` is an address in the cluster, made by `cluster_address`.
__device__ __forceinline__ void barrier_arrive_remote(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Returns once the phase of this parity is complete: at once if the barrier is one phase further.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// A place in a ring of COUNT stages, each with its barriers: `phase` is the parity to wait for.
template <u32 COUNT>
struct RingOf {
    u32 stage = 0, phase = 0;

    __device__ void skip(u32 stages) {
        stage += stages;
        phase ^= stage / COUNT & 1;
        stage %= COUNT;
    }

    __device__ void advance() {
        if (++stage == COUNT) {
            stage = 0;
            phase ^= 1;
        }
    }

    __device__ RingOf before() const {
        return stage > 0 ? RingOf{stage - 1, phase} : RingOf{COUNT - 1, phase ^ 1};
    }
};

// Waits for all threads of a warpgroup; each has a `name` of its own, from 1 to 15.
__device__ __forceinline__ void warpgroup_sync(u32 name) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "n"(WARPGROUP) : "memory");
}

// ---- Clusters ----

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.release;\n"
        "barrier.cluster.wait.acquire;\n" ::
            : "memory");
}

// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ u32 cluster_address(u32 address, u32 rank) {
    u32 result;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
    return result;
}

// Both addresses are in the cluster; the write counts as 8 bytes at the barrier.
__device__ __forceinline__ void store_remote(u32 to, float first, float second, u32 barrier) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32"
        " [%0], {%1, %2}, [%3];" ::"r"(to),
        "f"(first), "f"(second), "r"(barrier)
        : "memory");
}

// What is loaded behind a barrier and stays until another: may be moved between the two.
__device__ __forceinline__ float2 load_shared_floats(u32 from) {
    float2 pair;
    asm("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(from));
    return pair;
}

__device__ __forceinline__ float2 load_shared_pair(u32 from) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(pair.x), "=f"(pair.y)
                 : "r"(from)
                 : "memory");
    return pair;
}

// ---- TMA ----

__device__ __forceinline__ void tensor_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Loads the box at (column, row) of the map to `to`; its bytes count at `barrier`.
__device__ __forceinline__ void tensor_load(u32 to, const TensorMap& map, int column, int row,
                                            u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// Loads consecutive bytes; addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// tensor_load into the blocks of the cluster whose ranks are set in `blocks`, at the same place in
// each, counted at the same barrier of each.
__device__ __forceinline__ void tensor_load_multicast(u32 to, const TensorMap& map, int column,
                                                      int row, u32 barrier, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
        : "memory");
}

// Stores a box from shared memory; what of it lies outside of the tensor is not written.
__device__ __forceinline__ void tensor_store(const TensorMap& map, int column, int row, u32 from) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group"
        " [%0, {%1, %2}], [%3];" ::"l"(&map),
        "r"(column), "r"(row), "r"(from)
        : "memory");
}

__device__ __forceinline__ void store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most PENDING committed groups still read shared memory.
template <int PENDING>
__device__ __forceinline__ void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Makes ordinary writes to shared memory visible to the copy engine.
__device__ __forceinline__ void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- 8x8 matrices of 16-bit values; each lane gives the address of one row ----

__device__ __forceinline__ void store_matrices(u32 row, const u32 (&matrices)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
}

__device__ __forceinline__ void load_matrices(u32 row, u32 (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ void store_shared(u32 to, u16 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
}

// ---- Registers of a warpgroup, of which all warps call this ----

template <int COUNT>
__device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- wgmma ----

// Rows of 128 or 64 bytes, swizzled by as many, 8 rows to the next atom. Where they run along K, a
// step stays inside of the atom: 32 bytes, so + 2. Where along N ("transposed", N is
// all of the row), it is 16 rows.
template <u32 ROW_BYTES = SWIZZLE_ROW>
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
    static_assert(ROW_BYTES == 128 || ROW_BYTES == 64, "the swizzles in use");
    constexpr u64 SWIZZLE = (ROW_BYTES == 128 ? 1ull : 2ull) << 62;
    constexpr u64 STRIDE = (u64)(8 * ROW_BYTES >> 4) << 32;
    constexpr u64 UNUSED_LEADING = 1ull << 16;
    return SWIZZLE | STRIDE | UNUSED_LEADING | (u64)((address & 0x3ffffu) >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// No use of these values may move before this point.
template <int COUNT>
__device__ __forceinline__ void pin(float (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        asm volatile("" : "+f"(values[i])::"memory");
    }
}

#ifdef T_BF16
#define WGMMA_TYPES ".f32.bf16.bf16 {"
#else
#define WGMMA_TYPES ".f32.f16.f16 {"
#endif

// Of operands in shared memory; those of 16 bits could be transposed.
#if FP8
#define WGMMA_SHARED_TYPES "k32.f32.e4m3.e4m3 {"
#define WGMMA_SHARED_FLAGS ", p, 1, 1;\n}\n"
#else
#define WGMMA_SHARED_TYPES "k16" WGMMA_TYPES
#define WGMMA_SHARED_FLAGS ", p, 1, 1, 0, 0;\n}\n"
#endif

// Names of ten operands, and constraints of eight.
#define TEN(T)                                                                                     \
    "%" #T "0, %" #T "1, %" #T "2, %" #T "3, %" #T "4, %" #T "5, %" #T "6, %" #T "7, %" #T "8, "   \
    "%" #T "9, "
#define EIGHT(I)                                                                                   \
    "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]),    \
        "+f"(d[I + 6]), "+f"(d[I + 7])
#define THIRTY_TWO(I) EIGHT(I), EIGHT(I + 8), EIGHT(I + 16), EIGHT(I + 24)

// D is replaced if not `accumulate`. NAMES and DATA are the operands of N / 2 values; A, B and
// ACCUMULATE are the numbers of those that follow.
#define WGMMA(N, NAMES, A, B, ACCUMULATE, ...)                                                     \
    __device__ __forceinline__ void wgmma(float (&d)[N / 2], u64 a, u64 b, int accumulate) {       \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ACCUMULATE ", 0;\n"                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N WGMMA_SHARED_TYPES NAMES               \
                     "}, %" #A ", %" #B WGMMA_SHARED_FLAGS                                         \
                     : __VA_ARGS__                                                                 \
                     : "l"(a), "l"(b), "r"(accumulate));                                           \
    }

#define NAMES_30 TEN() TEN(1) TEN(2)
#define NAMES_60 NAMES_30 TEN(3) TEN(4) TEN(5)
#define NAMES_90 NAMES_60 TEN(6) TEN(7) TEN(8)
#define NAMES_120 NAMES_90 TEN(9) TEN(10) TEN(11)

WGMMA(64, NAMES_30 "%30, %31", 32, 33, 34, THIRTY_TWO(0))
WGMMA(128, NAMES_60 "%60, %61, %62, %63", 64, 65, 66, THIRTY_TWO(0), THIRTY_TWO(32))
WGMMA(192, NAMES_90 "%90, %91, %92, %93, %94, %95", 96, 97, 98, THIRTY_TWO(0), THIRTY_TWO(32),
      THIRTY_TWO(64))
WGMMA(256, NAMES_120 "%120, %121, %122, %123, %124, %125, %126, %127", 128, 129, 130, THIRTY_TWO(0),
      THIRTY_TWO(32), THIRTY_TWO(64), THIRTY_TWO(96))

// The same with A in registers, a fragment of 16 x 16 for each warp (mma.cuh), and B^T in place of
// B if TRANSPOSED. Neither may change before the product is complete.
#define WGMMA_REGISTERS(N, NAMES, A, B, ACCUMULATE, TRANSPOSE, ...)                                \
    template <bool TRANSPOSED>                                                                     \
    __device__ __forceinline__ void wgmma(float (&d)[N / 2], const u32 (&a)[4], u64 b,             \
                                          int accumulate) {                                        \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ACCUMULATE ", 0;\n"                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16" WGMMA_TYPES NAMES                \
                     "}, {" A "}, %" #B ", p, 1, 1, %" #TRANSPOSE ";\n}\n"                         \
                     : __VA_ARGS__                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),        \
                       "n"((int)TRANSPOSED));                                                      \
    }

WGMMA_REGISTERS(32, TEN() "%10, %11, %12, %13, %14, %15", "%16, %17, %18, %19", 20, 21, 22,
                EIGHT(0), EIGHT(8))
WGMMA_REGISTERS(64, NAMES_30 "%30, %31", "%32, %33, %34, %35", 36, 37, 38, THIRTY_TWO(0))
WGMMA_REGISTERS(128, NAMES_60 "%60, %61, %62, %63", "%64, %65, %66, %67", 68, 69, 70, THIRTY_TWO(0),
                THIRTY_TWO(32))
WGMMA_REGISTERS(192, NAMES_90 "%90, %91, %92, %93, %94, %95", "%96, %97, %98, %99", 100, 101, 102,
                THIRTY_TWO(0), THIRTY_TWO(32), THIRTY_TWO(64))
