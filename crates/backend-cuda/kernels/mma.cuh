// Tensor cores and copies that don't block, one PTX instruction per function; put between the
// prelude and a kernel that multiplies matrices of 16-bit values.
//
// - `multiply_add`, 16x8 += 16x16 * 16x8 with f32 accumulators
// - `load_transposed`, four 8x8 matrices from shared memory
// - `quad_max`, `quad_sum` and `transpose_quad`, between the four lanes that share a row
// - `copy_async` and its groups; a blocking copy where the hardware lacks them (sm_75)
//
// Which element a lane holds is as PTX defines it for mma.m16n8k16 (PTX ISA, "Matrix Fragments").
// With g = lane / 4 and t = lane % 4:
//   A (16x16): words 0, 1 are rows g, g + 8 at columns 2t, 2t + 1; words 2, 3 the same at + 8
//   B (16x8): words 0, 1 are rows 2t, 2t + 1 and the same + 8, at column g
//   accumulator (16x8): values 0, 1 are row g at columns 2t, 2t + 1; values 2, 3 row g + 8

#ifdef __CUDACC__

#if defined(T_F32) || (defined(T_BF16) && __CUDA_ARCH__ < 800)
#error "no matrix instruction takes this type and gives results of f32's precision"
#endif

__device__ __forceinline__ void multiply_add(
    float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1
) {
#if __CUDA_ARCH__ >= 800
#ifdef T_F16
#define VECMILL_MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#else
#define VECMILL_MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#endif
    asm(VECMILL_MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#undef VECMILL_MMA
#else
    const u32 b[2] = {b0, b1};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}

// Four 8x8 matrices, each transposed: lane i names row i % 8 of matrix i / 8, and
// gets of each matrix the elements at rows 2t, 2t + 1 and column g, as B wants them.
__device__ __forceinline__ void load_transposed(u32 (&words)[4], const T* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies 16 bytes to shared memory, or writes zeros and doesn't read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool copy) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(copy ? 16 : 0)
                 : "memory");
#else
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (copy) {
        bits = *(const uint4*)from;
    }
    *(uint4*)to = bits;
#endif
}

// Ends the group of this thread's copies since the last group.
__device__ __forceinline__ void end_copy_group() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `PENDING` of the newest groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void wait_for_copy_groups() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Between the four lanes that share a row ----

__device__ __forceinline__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// Of 4x4 words, spread over four lanes by columns, to by rows: lane t's word i goes to lane i's t.
__device__ __forceinline__ void transpose_quad(u32 (&words)[4]) {
    const bool odd = threadIdx.x & 1;
    const bool upper = threadIdx.x & 2;
    u32 near[2];
    u32 far[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        near[i] = upper ? words[2 + i] : words[i];
        far[i] = __shfl_xor_sync(ALL_LANES, upper ? words[i] : words[2 + i], 2);
    }
    const u32 from_near = __shfl_xor_sync(ALL_LANES, odd ? near[0] : near[1], 1);
    const u32 from_far = __shfl_xor_sync(ALL_LANES, odd ? far[0] : far[1], 1);
    const u32 near_pair[2] = {odd ? from_near : near[0], odd ? near[1] : from_near};
    const u32 far_pair[2] = {odd ? from_far : far[0], odd ? far[1] : from_far};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        words[i] = upper ? far_pair[i] : near_pair[i];
        words[2 + i] = upper ? near_pair[i] : far_pair[i];
    }
}

#endif
