// What every kernel file needs; put in front of it as text, since NVRTC has no headers here.
//
// - `T`, the type of stored values, chosen by -DT_F16, -DT_BF16 or -DT_F32, and its conversions
// - with -DFP8_OUTPUT=1, conversion to e4m3, and that as the type `Output`, which else is T
// - waiting for the kernel before
// - 16-byte vectors of T
// - reductions over a warp and over a block
// - activations
//
// The choice: 16-bit formats are plain bits (u16) converted by single PTX instructions, so that all
// arithmetic is visibly f32. The activations are free of PTX; `scripts/kernels/activations.cpp`
// includes this file on the host and measures them.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(T_F16) + defined(T_BF16) + defined(T_F32) != 1
#error "define exactly one of T_F16, T_BF16 and T_F32"
#endif

#ifdef T_F32
typedef float T;
#else
typedef u16 T;
#endif

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
// Elements of T in 16 bytes.
constexpr int VECTOR = 16 / sizeof(T);

#ifdef __CUDACC__

// Returns when the kernel before in the stream has ended and all that it wrote is there. Where
// blocks may start sooner (`Launch::early`), nothing in device memory is touched before.
__device__ __forceinline__ void await_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- Conversions: all round to nearest, ties to even ----

#ifdef T_F32

__device__ __forceinline__ float to_float(T value) { return value; }
__device__ __forceinline__ T from_float(float value) { return value; }

#elif defined(T_F16)

__device__ __forceinline__ float to_float(T value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
    return result;
}

__device__ __forceinline__ T from_float(float value) {
    T result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
    return result;
}

// Two values in one word, the first in the lower half.
__device__ __forceinline__ u32 pack2(float low, float high) {
    u32 result;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#else
    result = from_float(low) | (u32)from_float(high) << 16;
#endif
    return result;
}

#else

__device__ __forceinline__ float to_float(T value) { return __uint_as_float((u32)value << 16); }

__device__ __forceinline__ T from_float(float value) {
#if __CUDA_ARCH__ >= 800
    T result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
    return result;
#else
    u32 bits = __float_as_uint(value);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? 0x7fff : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
#endif
}

// Two values in one word, the first in the lower half.
__device__ __forceinline__ u32 pack2(float low, float high) {
    u32 result;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#else
    result = from_float(low) | (u32)from_float(high) << 16;
#endif
    return result;
}

#endif

#ifndef T_F32
__device__ __forceinline__ void unpack2(u32 pair, float& low, float& high) {
    low = to_float((u16)(pair & 0xffffu));
    high = to_float((u16)(pair >> 16));
}
#endif

// ---- FP8: e4m3, four bits of exponent and three of mantissa, from compute capability 8.9 on ----

#if FP8_OUTPUT
// Activations are stored times this. Times a power of two, a floating-point number keeps its digits:
// values have all of theirs from 2^-7 to 224, and saturate there.
constexpr float E4M3_SCALE = 2.0f;

// Two scaled values, the first in the lower byte; NaN stays NaN.
__device__ __forceinline__ u16 pack2_e4m3(float low, float high) {
    u16 result;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(result)
        : "f"(high * E4M3_SCALE), "f"(low * E4M3_SCALE));
    return result;
}

__device__ __forceinline__ u8 to_e4m3(float value) { return (u8)pack2_e4m3(value, 0.0f); }

// What kernels that feed linear layers alone write.
typedef u8 Output;
#else
typedef T Output;
#endif

// ---- 16 bytes of T at an address divisible by 16 ----

__device__ __forceinline__ void unpack_vector(const uint4& bits, float (&values)[VECTOR]) {
    const u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#ifdef T_F32
        values[i] = __uint_as_float(words[i]);
#else
        unpack2(words[i], values[2 * i], values[2 * i + 1]);
#endif
    }
}

__device__ __forceinline__ uint4 pack_vector(const float (&values)[VECTOR]) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#ifdef T_F32
        words[i] = __float_as_uint(values[i]);
#else
        words[i] = pack2(values[2 * i], values[2 * i + 1]);
#endif
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ uint4 load_bits(const T* from) {
    return *reinterpret_cast<const uint4*>(from);
}

__device__ __forceinline__ void load_vector(const T* from, float (&values)[VECTOR]) {
    unpack_vector(load_bits(from), values);
}

__device__ __forceinline__ void store_vector(T* to, const float (&values)[VECTOR]) {
    *reinterpret_cast<uint4*>(to) = pack_vector(values);
}

#if FP8_OUTPUT
// Scaled, as 8 bytes at an address divisible by 8.
__device__ __forceinline__ void store_vector_e4m3(u8* to, const float (&values)[8]) {
    u32 words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        words[i] = pack2_e4m3(values[4 * i], values[4 * i + 1]) |
                   (u32)pack2_e4m3(values[4 * i + 2], values[4 * i + 3]) << 16;
    }
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}
#endif

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// ---- Reductions: every thread gets the result, the same bits in each ----

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, lanes);
    }
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, lanes));
    }
    return value;
}

// `partials` is shared memory of one float per warp, free for use again when the call returns.
// All `32 * warps` threads of the block call it together.
__device__ __forceinline__ float block_sum(float value, float* partials, int warps) {
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        partials[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < warps; ++i) {
        total += partials[i];
    }
    __syncthreads();
    return total;
}

// ---- Approximations by one instruction each, within 2 ulp; subnormal results are zero ----

__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

#endif

// ---- Activations: within a few ulp for f32; coarser for the 16-bit formats ----
//
// There within 2^-16 relative, a sixteenth of f16's rounding error, for a third of the instructions;
// GELU within 2^-13.8 of results above 2^-7 and 4.5e-7 of smaller ones: behind a product each
// instruction for each element takes power, by which long work is limited. Infinities, which only
// overflow makes, may become NaN.

constexpr float LOG2_E = 1.44269504f;

__device__ __forceinline__ float logistic(float x) {
#ifdef T_F32
    return 1.0f / (1.0f + expf(-x));
#else
    return reciprocal_approx(1.0f + exp2_approx(-LOG2_E * x));
#endif
}

// x * Phi(x), with Phi the normal distribution's cumulative function: the exact GELU.
__device__ __forceinline__ float gelu(float x) {
#ifdef T_F32
    return x * normcdff(x);
#else
    // max(x, 0) - |x| * Phi(-|x|) has no cancellation. log2(Phi(-y)) is nearly a parabola: this is the
    // polynomial with which |x| * Phi(-|x|) is off by the least, 4.5e-7; beyond 7 it goes to minus
    // infinity as the function does.
    const float y = fabsf(x);
    float power = -4.73294058e-4f;
    power = fmaf(power, y, 7.08446139e-3f);
    power = fmaf(power, y, -5.18271700e-2f);
    power = fmaf(power, y, -4.59992647e-1f);
    power = fmaf(power, y, -1.15078783f);
    power = fmaf(power, y, -1.00003767f);
    return fmaf(-y, exp2_approx(power), fmaxf(x, 0.0f));
#endif
}

// GELU with Phi(x) approximated by (1 + tanh(u)) / 2, which is the logistic function of 2u.
__device__ __forceinline__ float gelu_tanh(float x) {
    const float twice_u = x * fmaf(0.071354816f, x * x, 1.5957691f);
    return x * logistic(twice_u);
}

__device__ __forceinline__ float silu(float x) { return x * logistic(x); }

// NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

// In the order of `vecmill_model::Activation`.
enum Activation { GELU, GELU_TANH, RELU, SILU, TANH, IDENTITY };

template <Activation ACTIVATION>
__device__ __forceinline__ float activate(float x) {
    switch (ACTIVATION) {
        case GELU: return gelu(x);
        case GELU_TANH: return gelu_tanh(x);
        case RELU: return relu(x);
        case SILU: return silu(x);
        case TANH: return tanhf(x);
        default: return x;
    }
}
