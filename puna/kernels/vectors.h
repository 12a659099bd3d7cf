// Vectors of fp32 for whatever instruction set the compiler was told of (GCC's and Clang's vector extensions), bf16
// in memory, and the register tile that every matrix product is made of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int HEIGHT = 12;  // rows of a tile: its sums take 24 of 32 registers
#else
constexpr int HEIGHT = 6;  // 12 of 16 registers
#endif
constexpr int VECTORS = 2;
constexpr int WIDTH = VECTORS * LANES;  // columns of a tile

constexpr long ALONE = 1 << 21;  // multiplications (some 0.1 ms) that are not worth waiting for other threads

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));
typedef float floats_anywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t halves_anywhere __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

struct bf16 {
    uint16_t bits;
};

inline long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

inline floats load(const float* x) { return *reinterpret_cast<const floats_anywhere*>(x); }
inline floats load(const bf16* x) {
    const halves bits = *reinterpret_cast<const halves_anywhere*>(x);
    return (floats)(__builtin_convertvector(bits, words) << 16);
}

// To nearest, ties to even; NaN stays NaN.
inline floats rounded_to_bf16(floats x) {
    const words bits = (words)x, nan = (words)(x != x);
    const words nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    return (floats)((nearest & ~nan) | (0x7fc00000 & nan));
}

inline void store(float* out, floats x) { *reinterpret_cast<floats_anywhere*>(out) = x; }
inline void store(bf16* out, floats x) {
    *reinterpret_cast<halves_anywhere*>(out) = __builtin_convertvector((words)rounded_to_bf16(x) >> 16, halves);
}

// The same for one number.
inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}
inline float rounded_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = x != x ? 0x7fc00000 : (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline void narrow(float* out, float x) { *out = x; }
inline void narrow(bf16* out, float x) {
    x = rounded_to_bf16(x);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    out->bits = uint16_t(bits >> 16);
}

// n numbers, widened or rounded where the types differ.
template <class From, class To>
inline void convert(const From* in, To* out, long n) {
    long i = 0;
    for (; i + LANES <= n; i += LANES) store(out + i, load(in + i));
    for (; i < n; i++) narrow(out + i, widen(in[i]));
}

// Working memory, aligned to cache lines.
struct Buffer {
    explicit Buffer(long n) : data(static_cast<float*>(std::aligned_alloc(64, round_up(n * 4 + 64, 64)))) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    float* take(long n) {
        float* here = data + used;
        used += round_up(n, 16);
        return here;
    }
    float* data;
    long used = 0;
};

// M rows by N vectors of sums, in registers.
template <int M, int N>
struct Tile {
    floats sums[M][N];

    void clear() {
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) sums[i][j] = floats{};
    }
    void load(const float* c, long row) {
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) sums[i][j] = ::load(c + i * row + j * LANES);
    }
    void store(float* c, long row) const {
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) ::store(c + i * row + j * LANES, sums[i][j]);
    }
    // sums += a b: a's numbers, each broadcast, are `a_row` apart by row and `a_step` along the sum; b's vectors
    // are `b_step` apart along the sum.
    void add(const float* a, long a_row, long a_step, const float* b, long b_step, long steps) {
        for (long k = 0; k < steps; k++, a += a_step, b += b_step) {
            floats right[N];
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) right[j] = ::load(b + j * LANES);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
#pragma GCC unroll 2
                for (int j = 0; j < N; j++) sums[i][j] += a[i * a_row] * right[j];
        }
    }
};

// run(M) with M = min(rows, HEIGHT) a constant.
template <int M = HEIGHT, class F>
inline void by_height(long rows, F run) {
    if constexpr (M > 1)
        if (rows < M) return by_height<M - 1>(rows, run);
    run(std::integral_constant<int, M>());
}

}  // namespace
