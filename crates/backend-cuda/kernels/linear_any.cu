// Linear layers of sizes that cuBLASLt and tensor cores do not take well:
// output = activation(input weight^T + bias).
//
//     vecmill_linear_<activation>(const T* input, const T* weight, const T* bias, T* output,
//                                 u32 rows, u32 inputs, u32 outputs)
//         <activation>: identity, gelu, gelu_tanh, relu, silu, tanh
//         input `[rows, inputs]`, weight `[outputs, inputs]`, output `[rows, outputs]`
//
// Grid: ceil(rows / 16) * ceil(outputs / 16) blocks. Block: 256 threads. Dynamic shared memory:
// none. Alignment: that of T. Sizes: any.
//
// The choice: correct for every size, on the ordinary units, with the sum of a row and column in one
// f32 and in one order. Models whose widths are no multiple of 8 are rare and small.

constexpr int TILE = 16;

template <Activation ACTIVATION>
__device__ __forceinline__ void linear(
    const T* input, const T* weight, const T* bias, T* output, u32 rows, u32 inputs, u32 outputs
) {
    __shared__ float input_tile[TILE][TILE + 1];
    __shared__ float weight_tile[TILE][TILE + 1];
    const u32 column_tiles = (outputs + TILE - 1) / TILE;
    const u32 lane = threadIdx.x % TILE;
    const u32 line = threadIdx.x / TILE;
    const u32 first_row = blockIdx.x / column_tiles * TILE;
    const u32 first_column = blockIdx.x % column_tiles * TILE;
    float sum = 0.0f;
    for (u32 begin = 0; begin < inputs; begin += TILE) {
        const bool inside = begin + lane < inputs;
        const u32 row = first_row + line;
        const u32 column = first_column + line;
        input_tile[line][lane] =
            inside && row < rows ? to_float(input[(u64)row * inputs + begin + lane]) : 0.0f;
        weight_tile[line][lane] =
            inside && column < outputs ? to_float(weight[(u64)column * inputs + begin + lane]) : 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            sum += input_tile[line][k] * weight_tile[lane][k];
        }
        __syncthreads();
    }
    const u32 row = first_row + line;
    const u32 column = first_column + lane;
    if (row < rows && column < outputs) {
        output[(u64)row * outputs + column] = from_float(activate<ACTIVATION>(sum + to_float(bias[column])));
    }
}

#define LINEAR(NAME, ACTIVATION)                                                                   \
    extern "C" __global__ void __launch_bounds__(TILE * TILE) vecmill_linear_##NAME(               \
        const T* __restrict__ input, const T* __restrict__ weight, const T* __restrict__ bias,     \
        T* __restrict__ output, u32 rows, u32 inputs, u32 outputs                                  \
    ) {                                                                                            \
        await_previous_kernel();                                                                   \
        linear<ACTIVATION>(input, weight, bias, output, rows, inputs, outputs);                    \
    }

LINEAR(identity, IDENTITY)
LINEAR(gelu, GELU)
LINEAR(gelu_tanh, GELU_TANH)
LINEAR(relu, RELU)
LINEAR(silu, SILU)
LINEAR(tanh, TANH)
