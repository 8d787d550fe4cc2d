// Activations in place, for linear layers whose library can't apply them itself.
//
//     vecmill_<activation>(T* values, u64 count)      gelu, gelu_tanh, relu, silu, tanh
//
// Grid: ceil(count / (512 * VECTOR)) blocks, with VECTOR = 8, or 4 for f32. Block: 256 threads.
// Dynamic shared memory: none. Alignment: 16 bytes. `count` is rows * columns, of any size.
//
// The choice: two independent 16-byte loads per thread, as the memory needs more in flight than one
// each; what the last vector lacks is done value by value.

constexpr int BLOCK = 256;
constexpr int VECTORS_PER_THREAD = 2;

template <Activation ACTIVATION>
__device__ __forceinline__ void activate_all(T* values, u64 count) {
    const u64 first = ((u64)blockIdx.x * BLOCK * VECTORS_PER_THREAD + threadIdx.x) * VECTOR;
    uint4 bits[VECTORS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < VECTORS_PER_THREAD; ++i) {
        const u64 at = first + i * BLOCK * VECTOR;
        if (at + VECTOR <= count) {
            bits[i] = load_bits(values + at);
        }
    }
#pragma unroll
    for (int i = 0; i < VECTORS_PER_THREAD; ++i) {
        const u64 at = first + i * BLOCK * VECTOR;
        if (at + VECTOR <= count) {
            float x[VECTOR];
            unpack_vector(bits[i], x);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                x[j] = activate<ACTIVATION>(x[j]);
            }
            store_vector(values + at, x);
        } else {
            for (u64 rest = at; rest < count; ++rest) {
                values[rest] = from_float(activate<ACTIVATION>(to_float(values[rest])));
            }
        }
    }
}

#define ACTIVATE(NAME, ACTIVATION)                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) NAME(T* values, u64 count) {               \
        await_previous_kernel();                                                                   \
        activate_all<ACTIVATION>(values, count);                                                   \
    }

ACTIVATE(vecmill_gelu, GELU)
ACTIVATE(vecmill_gelu_tanh, GELU_TANH)
ACTIVATE(vecmill_relu, RELU)
ACTIVATE(vecmill_silu, SILU)
ACTIVATE(vecmill_tanh, TANH)
