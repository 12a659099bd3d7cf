// The register tile that every matrix product is made of, and numbers in memory, fp32 or bf16.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <type_traits>

#include "vectors.h"

namespace {

constexpr int HEIGHT = REGISTERS == 32 ? 12 : 6;  // rows of a tile: its sums take 24 of 32 registers, or 12 of 16
constexpr int VECTORS = 2;
constexpr int WIDTH = VECTORS * LANES;  // columns of a tile

constexpr long ALONE = 1 << 21;  // multiplications (some 0.1 ms) that are not worth waiting for other threads

inline long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE Floats load(const float* from) { return load<Floats>(from); }
INLINE Floats load(const bf16* from) { return widen(load<Halves>(from)); }
INLINE void store(float* to, Floats x) { store<Floats>(to, x); }
INLINE void store(bf16* to, Floats x) { store<Halves>(to, to_bf16(x)); }

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
    Floats sums[M][N];

    void clear() {
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) sums[i][j] = Floats{};
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
            Floats right[N];
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
