// Softmax of scores that come in tiles of keys, one after another ("online"), shared by the
// attention kernels on tensor cores; after mma.cuh and sequences.cuh.
//
// - `Weighted`, what is known of a warp's rows so far
// - `hide`, which takes scores of keys that a row doesn't see out
// - `weigh`, which makes scores weights
// - `store_rows`, the result
//
// Scores and outputs lie as accumulators of 16 x 8 do (mma.cuh), which wgmma's are rows of. Of a
// pair, index 0 is row g = lane / 4 of a row tile, index 1 is row g + 8.

#ifdef __CUDACC__

// The depth of one matrix instruction.
constexpr int STEP = 16;

// The outputs of 16 * ROW_TILES rows, with weights relative to exp2(largest * scale), and the
// weights' totals, which stay spread over a row's four lanes until the end.
template <int ROW_TILES, int COLUMN_TILES>
struct Weighted {
    float outputs[ROW_TILES][COLUMN_TILES][4];
    float largest[ROW_TILES][2];
    float totals[ROW_TILES][2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                largest[m][half] = minus_infinity();
                totals[m][half] = 0.0f;
            }
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    outputs[m][n][i] = 0.0f;
                }
            }
        }
    }

    __device__ __forceinline__ void correct(const float (&correction)[ROW_TILES][2]) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                totals[m][half] *= correction[m][half];
            }
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    outputs[m][n][i] *= correction[m][i / 2];
                }
            }
        }
    }
};

// Minus infinity for what a window doesn't show; `distance` is the first key's from the warp's first row.
template <int ROW_TILES, int KEY_TILES>
__device__ __forceinline__ void hide(
    float (&scores)[ROW_TILES][KEY_TILES][4], Window window, int distance
) {
    const bool all_seen = window.shows(distance + 8 * KEY_TILES - 1) &&
                          window.shows(distance - (16 * ROW_TILES - 1));
    if (!WINDOWED || all_seen) {
        return;
    }
    const int lane = threadIdx.x % WARP;
    const int own = distance + lane % 4 * 2 - lane / 4;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool seen = window.shows(own + n * 8 + i % 2 - m * 16 - i / 2 * 8);
                scores[m][n][i] = seen ? scores[m][n][i] : minus_infinity();
            }
        }
    }
}

// Scores become weights exp2((score - largest) * scale). A row's `largest` follows its scores only
// when they are MARGIN powers of two ahead: weights may be up to 2^MARGIN, which costs no
// precision, and what was summed so far seldom needs correcting. CUT: only the first `valid` keys
// are there, the others' weights are 0.
template <bool CUT, int ROW_TILES, int KEY_TILES, int COLUMN_TILES>
__device__ __forceinline__ void weigh(
    float (&scores)[ROW_TILES][KEY_TILES][4], Weighted<ROW_TILES, COLUMN_TILES>& rows, float scale,
    u32 valid
) {
    constexpr float MARGIN = 8.0f;
    const u32 column = threadIdx.x % 4 * 2;
    float correction[ROW_TILES][2];
    bool corrected = false;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float before = rows.largest[m][half];
            float largest = before;
#pragma unroll
            for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    if (CUT && n * 8 + column + i % 2 >= valid) {
                        scores[m][n][i] = minus_infinity();
                    }
                    largest = fmaxf(largest, scores[m][n][i]);
                }
            }
            largest = quad_max(largest);
            const float ahead = (largest - before) * scale;
            const bool follow = ahead > MARGIN;
            rows.largest[m][half] = follow ? largest : before;
            correction[m][half] = follow ? exp2_approx(-ahead) : 1.0f;
            corrected |= follow;
        }
    }
    if (__any_sync(ALL_LANES, corrected)) {
        rows.correct(correction);
    }
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& score = scores[m][n][i];
                if (CUT && n / 2 * STEP >= valid) {
                    score = 0.0f;
                    continue;
                }
                float largest = rows.largest[m][i / 2];
                // Until a row sees its first key, all its weights are 0.
                largest = WINDOWED && largest == minus_infinity() ? 0.0f : largest;
                score = exp2_approx(fmaf(score, scale, -largest * scale));
                rows.totals[m][i / 2] += score;
            }
        }
    }
}

// The factor that key tiles 2k and 2k + 1 are as they stand.
template <int KEY_TILES>
__device__ __forceinline__ void pack_weights(
    u32 (&factor)[4], const float (&weights)[KEY_TILES][4], int k
) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float(&tile)[4] = weights[2 * k + i / 2];
        factor[i] = pack2(tile[i % 2 * 2], tile[i % 2 * 2 + 1]);
    }
}

// One instruction; of an assignment the compiler makes four here.
__device__ __forceinline__ void store_words(Output* to, const u32 (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// Of pairs of neighbours, four tiles apart or, in e4m3, eight: this lane's 16 bytes of the row.
template <class Pair>
__device__ __forceinline__ void gather_words(u32 (&words)[4], Pair pair) {
#if FP8_OUTPUT
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] = pair(2 * i) | (u32)pair(2 * i + 1) << 16;
    }
    transpose_quad(words);
    // Now the lower halves are one tile's row, the upper ones the next tile's.
    const u32 halves[4] = {words[0], words[1], words[2], words[3]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 low = halves[i % 2 * 2], high = halves[i % 2 * 2 + 1];
        words[i] = __byte_perm(low, high, i < 2 ? 0x5410 : 0x7632);
    }
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] = pair(i);
    }
    transpose_quad(words);
#endif
}

// Divides by the totals and stores rows from `first` on, those below `length`; 16 bytes per lane
// where as many columns as four lanes store so are together.
template <int ROW_TILES, int COLUMN_TILES>
__device__ __forceinline__ void store_rows(
    const Weighted<ROW_TILES, COLUMN_TILES>& rows, const Head& head, u32 first
) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float inverse = reciprocal_approx(quad_sum(rows.totals[m][half]));
            const u32 row = first + m * 16 + half * 8 + lane / 4;
            Output* to = head.output + row * head.hidden;
            const auto pair = [&](int n) {
                const float(&tile)[4] = rows.outputs[m][n];
                const float low = tile[2 * half] * inverse, high = tile[2 * half + 1] * inverse;
#if FP8_OUTPUT
                return pack2_e4m3(low, high);
#else
                return pack2(low, high);
#endif
            };
            constexpr int LANE_COLUMNS = 16 / sizeof(Output);
            constexpr int TOGETHER = 4 * LANE_COLUMNS / 8;
#pragma unroll
            for (int n = 0; n + TOGETHER <= COLUMN_TILES; n += TOGETHER) {
                u32 words[4];
                gather_words(words, [&](int i) { return pair(n + i); });
                if (row < head.length) {
                    store_words(to + n * 8 + lane % 4 * LANE_COLUMNS, words);
                }
            }
#pragma unroll
            for (int n = COLUMN_TILES / TOGETHER * TOGETHER; n < COLUMN_TILES; ++n) {
                if (row < head.length) {
                    *reinterpret_cast<decltype(pair(n))*>(to + n * 8 + lane % 4 * 2) = pair(n);
                }
            }
        }
    }
}

#endif
