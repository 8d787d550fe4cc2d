// What the attention kernels share; put behind the prelude. -DHEAD_SIZE is theirs.
//
// - `find_tile`, which query rows of which sequence a block works on
// - `Head`, where the rows of one head are
// - `RelativeBias`, one head's biases by distance, in shared memory
//
// The choice: no list of tiles is made, on the host or by a kernel of its own. Either each sequence
// has as many slots as the longest needs, or slot numbers follow from `starts` alone: sequence i's
// first one is i + starts[i] / rows. That leaves each sequence at least ceil(length / rows) slots
// and at most one more, a block that ends at once.

#ifdef __CUDACC__

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

// Rows of a sequence; empty if `first >= length`.
struct Tile {
    u32 begin;
    u32 length;
    u32 first;
};

// `slots_each`: slots of each sequence, or 0 if they follow from `starts`. For whole warps.
__device__ __forceinline__ Tile find_tile(
    const u32* starts, u32 sequences, u32 slots_each, u32 slot, u32 rows
) {
    u32 sequence = 0;
    u32 first_slot = 0;
    if (slots_each > 0) {
        sequence = slot / slots_each;
        first_slot = sequence * slots_each;
    } else {
        // The last sequence whose first slot is not behind `slot`; each round looks at 32 places.
        const u32 lane = threadIdx.x % WARP;
        u32 end = sequences;
        while (end - sequence > 1) {
            const u32 step = (end - sequence + WARP - 1) / WARP;
            const u32 probe = sequence + lane * step;
            const bool before = probe < end && probe + starts[probe] / rows <= slot;
            sequence += (__popc(__ballot_sync(ALL_LANES, before)) - 1) * step;
            end = min(end, sequence + step);
        }
        first_slot = sequence + starts[sequence] / rows;
    }
    const u32 begin = starts[sequence];
    return Tile{begin, starts[sequence + 1] - begin, (slot - first_slot) * rows};
}

// One head's rows of one sequence: keys are `hidden` behind the queries, values behind the keys.
struct Head {
    const T* queries;
    Output* output;
    u32 stride;
    u32 hidden;
    u32 length;
};

__device__ __forceinline__ Head find_head(
    const T* qkv, Output* output, const Tile& tile, u32 heads, u32 index
) {
    const u32 hidden = heads * HEAD_SIZE;
    const u64 place = (u64)tile.begin * hidden;
    const u32 column = index * HEAD_SIZE;
    return Head{qkv + 3 * place + column, output + place + column, 3 * hidden, hidden, tile.length};
}

// Biases in units of log2, indexed by key - query + reach; farther distances count as the reach.
struct RelativeBias {
    const float* values;
    int reach;

    __device__ __forceinline__ float at(int distance) const {
        return values[min(max(distance, -reach), reach) + reach];
    }

    // Fills `shared` from `[heads, 2 * reach + 1]`; a barrier must follow.
    __device__ __forceinline__ static RelativeBias load(
        float* shared, const float* table, u32 reach, u32 head
    ) {
        const u32 distances = 2 * reach + 1;
        for (u32 i = threadIdx.x; i < distances; i += blockDim.x) {
            shared[i] = table[head * distances + i] * LOG2_E;
        }
        return RelativeBias{shared, (int)reach};
    }
};

#endif
