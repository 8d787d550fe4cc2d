// Rotary positions (RoFormer: Su et al., arXiv:2104.09864): queries and keys are turned by angles that
// grow with their places in their sequences.
//
//     vecmill_rotate(const T* input, T* output, const u32* starts, u32 sequences, u32 slots_each,
//                    u32 columns, u32 heads, u32 size, u32 pairs, Turns turns)
//         input, output `[tokens, columns]`: `heads` heads of `size` columns that are turned, and behind
//         them what stays as it is; of each head column i < pairs with column i + pairs, by
//         position * turns.per_position[i] turns. Output may be the input.
//
// Text before this file: prelude.cuh, sequences.cuh, which wants -DHEAD_SIZE, of no meaning here.
// Grid: `slots` as in attention.cu, for blocks of 16 rows. Block: 256 threads. Dynamic shared memory:
//     none. Alignment: 16 bytes. Sequences may be empty; rows behind the last are left alone.
//     1 <= pairs <= 128.
//
// **Precision.** An angle counts in turns, of which whole ones are taken off: for position p and
// frequency f, in two parts f = h + l, the product p h is exact as the sum of its rounding t and of
// fma(p, h, -t), and so is t - rint(t). What is left is within 2^-25 + p 2^-48 f of p f modulo 1, and
// cosine and sine are within 2 ulp of those of that: together within 2 pi (2^-25 + 2^-24) < 2^-21.4
// absolute whatever the position is, and nearer where angles are small. Each output then costs two
// roundings of its two products.
//
// The choice: a block makes the cosines and sines of its 16 rows once and all heads share them.

constexpr int BLOCK = 256;
constexpr u32 ROWS = 16;
constexpr u32 MAX_PAIRS = 128;

// By value.
struct Turns {
    // Sequences of more tokens than `trained` have a base of their own, theta times
    // (factor * tokens / trained - (factor - 1))^(dims / (dims - 2)).
    double theta, factor;
    u32 trained, dims;
    // Of each pair in shorter ones, in two parts.
    float2 per_position[MAX_PAIRS];
};

__device__ __forceinline__ float2 in_two_parts(double x) {
    const float high = (float)x;
    return make_float2(high, (float)(x - (double)high));
}

// In a sequence of so many tokens, which are more than the model was trained with.
__device__ __noinline__ float2 grown_turns(const Turns& turns, u32 pair, u32 tokens) {
    const double dims = turns.dims;
    const double grown = turns.factor * tokens / turns.trained - (turns.factor - 1.0);
    const double theta = turns.theta * pow(grown, dims / (dims - 2.0));
    // In single precision, as models are trained with.
    const float frequency = (float)pow(theta, -2.0 * pair / dims);
    return in_two_parts((double)frequency * 0.15915494309189533577);
}

__device__ __forceinline__ float2 cosine_and_sine(u32 position, float2 turns) {
    const float p = (float)position;
    const float whole = p * turns.x;
    const float rest = fmaf(p, turns.y, fmaf(p, turns.x, -whole));
    const float turn = (whole - rintf(whole)) + rest;
    float sine, cosine;
    sincospif(2.0f * turn, &sine, &cosine);
    return make_float2(cosine, sine);
}

__device__ __forceinline__ void turn(float& x, float& y, float2 by) {
    const float turned = fmaf(x, by.x, -(y * by.y));
    y = fmaf(y, by.x, x * by.y);
    x = turned;
}

extern "C" __global__ void __launch_bounds__(BLOCK) vecmill_rotate(
    const T* input, T* output, const u32* __restrict__ starts, u32 sequences, u32 slots_each,
    u32 columns, u32 heads, u32 size, u32 pairs, const __grid_constant__ Turns turns
) {
    __shared__ float2 by[ROWS][MAX_PAIRS + 1];
    await_previous_kernel();
    const Tile tile = find_tile(starts, sequences, slots_each, blockIdx.x, ROWS);
    if (tile.first >= tile.length) {
        return;
    }
    const u32 rows = min(ROWS, tile.length - tile.first);
    for (u32 i = threadIdx.x; i < rows * pairs; i += BLOCK) {
        const u32 pair = i % pairs;
        const float2 each = tile.length > turns.trained ? grown_turns(turns, pair, tile.length)
                                                        : turns.per_position[pair];
        by[i / pairs][pair] = cosine_and_sine(tile.first + i / pairs, each);
    }
    __syncthreads();
    const u64 first = (u64)(tile.begin + tile.first) * columns;
    const bool vectors = columns % VECTOR == 0 && size % VECTOR == 0 && pairs % VECTOR == 0;
    const u32 step = vectors ? VECTOR : 1;
    const u32 head_steps = pairs / step;
    const u32 row_steps = heads * head_steps;
    for (u32 i = threadIdx.x; i < rows * row_steps; i += BLOCK) {
        const u32 row = i / row_steps, rest = i % row_steps;
        const u32 pair = rest % head_steps * step;
        const u64 at = first + row * columns + rest / head_steps * size + pair;
        if (vectors) {
            float x[VECTOR], y[VECTOR];
            load_vector(input + at, x);
            load_vector(input + at + pairs, y);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                turn(x[j], y[j], by[row][pair + j]);
            }
            store_vector(output + at, x);
            store_vector(output + at + pairs, y);
        } else {
            float x = to_float(input[at]), y = to_float(input[at + pairs]);
            turn(x, y, by[row][pair]);
            output[at] = from_float(x);
            output[at + pairs] = from_float(y);
        }
    }
    if (input == output) {
        return;
    }
    for (u32 i = threadIdx.x; i < rows * columns; i += BLOCK) {
        const u32 column = i % columns;
        if (column >= heads * size || column % size >= 2 * pairs) {
            output[first + i] = input[first + i];
        }
    }
}
