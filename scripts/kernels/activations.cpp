// Measures the prelude's fast activations on the host against f64, at every finite f16 or bf16.
//
//     g++ -std=c++17 -O2 -ffp-contract=off -DT_F16 activations.cpp -o activations && ./activations
//
// The device's approximate instructions are stood in for by exact ones: what this shows is the error
// of the formulas; `check_rows.py` shows both together.

#include <cmath>
#include <cstdio>
#include <cstring>

#define __device__
#define __forceinline__ inline

static float exp2_approx(float x) { return exp2f(x); }
static float reciprocal_approx(float x) { return 1.0f / x; }

#include "../../crates/backend-cuda/kernels/prelude.cuh"

static float widen(u16 bits) {
#ifdef T_BF16
    const u32 wide = (u32)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
#else
    _Float16 value;
    memcpy(&value, &bits, 2);
    return (float)value;
#endif
}

// The largest error, relative to results that are at least `floor`, and to that of smaller ones; the
// least floor is half of f16's smallest subnormal.
static double worst(const char* name, float (*fast)(float), double (*exact)(double),
                    double floor = 0x1p-25) {
    double largest = 0;
    float where = 0;
    for (u32 bits = 0; bits < 65536; ++bits) {
        const float x = widen((u16)bits);
        if (!std::isfinite(x)) continue;
        const double expected = exact(x);
        const double error = fabs(fast(x) - expected) / fmax(fabs(expected), floor);
        if (!(error <= largest)) {
            largest = error;
            where = x;
        }
    }
    printf("%-10s 2^%.2f at %g\n", name, log2(largest), where);
    return largest;
}

int main() {
    const double of_gelu = worst(
        "gelu", gelu, [](double x) { return x * erfc(-x * M_SQRT1_2) / 2; }, 0x1p-7);
    double largest = of_gelu / 4;  // the others are four times as fine
    largest = fmax(largest, worst("gelu_tanh", gelu_tanh, [](double x) {
        return x / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    }));
    largest = fmax(largest, worst("silu", silu, [](double x) { return x / (1 + exp(-x)); }));
    return !(largest < 0x1p-16);
}
