// What the attention kernels share; put behind the prelude. -DHEAD_SIZE is theirs.
//
// - `find_tile`, which query rows of which sequence a block works on
// - `Head`, where the rows of one head are
// - `Window`, which keys a query sees: all of its sequence, or with -DWINDOWED=1 those near it
// - `DistanceBias`, one head's biases by distance: a table in shared memory, or a slope
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

#ifndef WINDOWED
#define WINDOWED 0
#endif

// A query sees keys from `left` places before it to `right` behind it; 2^29 are all.
//
// Key tiles begin at multiples of their size from the sequence's start, whichever are left out: of what
// a row doesn't see, weights are 0, so that its bits don't depend on which tiles its neighbours want.
struct Window {
    int left, right;

    // The first tile of `tile` keys that rows from `row` on see, and the end of the keys that those up
    // to `last` see.
    __device__ __forceinline__ u32 begin(u32 row, u32 tile) const {
        return WINDOWED ? (u32)max((int)row - left, 0) / tile * tile : 0;
    }

    __device__ __forceinline__ u32 end(u32 last, u32 length) const {
        return WINDOWED ? min(length, last + right + 1) : length;
    }

    // `distance`: the key's place less the query's.
    __device__ __forceinline__ bool shows(int distance) const {
        return !WINDOWED || (distance >= -left && distance <= right);
    }
};

// ALiBi's slope (arXiv:2108.12409) of a head: powers of two, from 2^(-8 / n) on for n heads; where n is no
// power of two, those of the next lower one, then every second of twice as many.
__device__ __forceinline__ float alibi_slope(u32 head, u32 heads) {
    const u32 power = 1u << (31 - __clz(heads));
    const bool beyond = head >= power;
    const float step = beyond ? 2 * (head - power) + 1 : head + 1;
    return exp2f(-8.0f * step / (float)(beyond ? 2 * power : power));
}

// Biases in units of log2. Of a table, indexed by key - query + reach, where farther distances count as
// the reach; without one -slope * |key - query|.
struct DistanceBias {
    const float* values;
    int reach;
    float slope;

    __device__ __forceinline__ float at(int distance) const {
        return values ? values[min(max(distance, -reach), reach) + reach]
                      : -slope * (float)abs(distance);
    }

    // Fills `shared` from `[heads, 2 * reach + 1]`, if there is a table; a barrier must follow.
    __device__ __forceinline__ static DistanceBias load(
        float* shared, const float* table, u32 reach, u32 head, u32 heads
    ) {
        if (!table) {
            return DistanceBias{nullptr, 0, alibi_slope(head, heads) * LOG2_E};
        }
        const u32 distances = 2 * reach + 1;
        for (u32 i = threadIdx.x; i < distances; i += blockDim.x) {
            shared[i] = table[head * distances + i] * LOG2_E;
        }
        return DistanceBias{shared, (int)reach, 0.0f};
    }
};

#endif
