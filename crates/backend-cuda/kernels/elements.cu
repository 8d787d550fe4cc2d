// What goes element by element: sums of two matrices, and gates.
//
//     vecmill_add(const T* first, const T* second, T* output, u32 rows, u32 columns)
//         output = first + second
//
//     vecmill_gate_<activation>(const T* halves, T* output, u8* operand, u32 rows, u32 columns,
//                               u32 group)
//         <activation>: identity, gelu, gelu_tanh, relu, silu, tanh
//         halves `[rows, 2 * columns]`: by turns `group` gates and the `group` ups that belong to them
//         output `[rows, columns]` = activation(gate) * up; output or operand may be null
//
// `operand`, with -DFP8_OUTPUT=1: the output in e4m3 times E4M3_SCALE, rounded once.
// Grid: any number of blocks, which share the elements; ceil(rows * columns / (256 * VECTOR)) are
//     enough. Block: 256 threads. Dynamic shared memory: none.
// Alignment: 16 bytes. Sizes are any; vectors are used where columns and group are multiples of
//     VECTOR = 8, or 4 for f32. Output may be the first addend or the second.
//
// The choice: memory decides. A gate costs one pass where a product's own end can't apply it.

constexpr int BLOCK = 256;

// Calls `with(row, column)` for each vector or, where rows are not made of vectors, each element.
template <class Function>
__device__ __forceinline__ void for_each(u32 rows, u32 columns, u32 step, Function with) {
    const u32 each = columns / step;
    const u64 count = (u64)rows * each;
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < count; i += (u64)gridDim.x * BLOCK) {
        with((u32)(i / each), (u32)(i % each) * step);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) vecmill_add(
    const T* first, const T* second, T* output, u32 rows, u32 columns
) {
    await_previous_kernel();
    if (columns % VECTOR == 0) {
        for_each(rows, columns, VECTOR, [&](u32 row, u32 column) {
            const u64 at = (u64)row * columns + column;
            float x[VECTOR], y[VECTOR];
            load_vector(first + at, x);
            load_vector(second + at, y);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                x[i] += y[i];
            }
            store_vector(output + at, x);
        });
    } else {
        for_each(rows, columns, 1, [&](u32 row, u32 column) {
            const u64 at = (u64)row * columns + column;
            output[at] = from_float(to_float(first[at]) + to_float(second[at]));
        });
    }
}

// Where a column's gate is in its row; its up is `group` behind it.
__device__ __forceinline__ u32 gate_of(u32 column, u32 group) {
    return column / group * 2 * group + column % group;
}

template <Activation ACTIVATION>
__device__ __forceinline__ void gate_all(
    const T* halves, T* output, u8* operand, u32 rows, u32 columns, u32 group
) {
    if (columns % VECTOR == 0 && group % VECTOR == 0) {
        for_each(rows, columns, VECTOR, [&](u32 row, u32 column) {
            const T* const from = halves + 2 * (u64)row * columns + gate_of(column, group);
            const u64 at = (u64)row * columns + column;
            float x[VECTOR], up[VECTOR];
            load_vector(from, x);
            load_vector(from + group, up);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                x[i] = activate<ACTIVATION>(x[i]) * up[i];
            }
            if (output) {
                store_vector(output + at, x);
            }
#if FP8_OUTPUT
            if (operand) {
                store_vector_e4m3(operand + at, x);
            }
#endif
        });
    } else {
        for_each(rows, columns, 1, [&](u32 row, u32 column) {
            const T* const from = halves + 2 * (u64)row * columns + gate_of(column, group);
            const u64 at = (u64)row * columns + column;
            const float x = activate<ACTIVATION>(to_float(from[0])) * to_float(from[group]);
            if (output) {
                output[at] = from_float(x);
            }
#if FP8_OUTPUT
            if (operand) {
                operand[at] = to_e4m3(x);
            }
#endif
        });
    }
}

#define GATE(NAME, ACTIVATION)                                                                     \
    extern "C" __global__ void __launch_bounds__(BLOCK) vecmill_gate_##NAME(                       \
        const T* __restrict__ halves, T* __restrict__ output, u8* __restrict__ operand, u32 rows,  \
        u32 columns, u32 group                                                                     \
    ) {                                                                                            \
        await_previous_kernel();                                                                   \
        gate_all<ACTIVATION>(halves, output, operand, rows, columns, group);                       \
    }

GATE(identity, IDENTITY)
GATE(gelu, GELU)
GATE(gelu_tanh, GELU_TANH)
GATE(relu, RELU)
GATE(silu, SILU)
GATE(tanh, TANH)
