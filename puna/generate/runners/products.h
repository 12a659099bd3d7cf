// Products of rows with packed matrices. Each panel is read from memory once for all rows, in storage order. A row
// is summed in the same order whatever rows are computed with it, so its bits depend on its own tokens alone.
#pragma once

#include <atomic>
#include <cmath>

#include "formats.h"
#include "model.h"

// What a row is packed to before a product: in blocks of M rows, [group][step][unit][M] of 4 bytes, and for
// integers [group][M] scales and sums (times the weights' zero).
struct Rows {
    uint32_t* values;
    float *scales, *sums;
};

// Prefetch the panel's next steps. Vectors narrower than a cache line need it: a tile of two reads every other
// line, which the hardware prefetcher follows badly. The first tile fetches for all tiles of the panel.
INLINE void fetch_ahead(const char* step) {
    constexpr int AHEAD = LANES == 16 ? 0 : 1024;  // bytes
    if (AHEAD)
        for (int line = 0; line < 128; line += 64) __builtin_prefetch(step + AHEAD + line);
}

// sums[row][first + v] = N vectors of one panel, from `first` on, times M packed rows.
template <class W, int M, int N>
INLINE void tile(const char* w, int first, const Rows& x, long groups, Floats (*sums)[VECTORS]) {
    Floats sum[M][N] = {};
    const char* const head = w;
    constexpr int VECTOR = sizeof(Floats), PER_GROUP = W::STEPS * W::UNITS * M;
    w += W::HEAD;
    for (long g = 0; g < groups; g++, w += W::BYTES) {
        const uint32_t* values = x.values + g * PER_GROUP;
        if constexpr (!W::INTEGER) {
            const char* at = w + VECTOR * first;
            for (int step = 0; step < W::STEPS; step++, at += 128) {
                if (first == 0) fetch_ahead(at);
                UNROLL for (int unit = 0; unit < W::UNITS; unit++, values += M) {
                    typename W::Weights weights[N];
                    UNROLL for (int v = 0; v < N; v++) weights[v] = W::part(at + VECTOR * v, unit);
                    UNROLL for (int row = 0; row < M; row++)
                        UNROLL for (int v = 0; v < N; v++)
                            sum[row][v] = W::dot(sum[row][v], weights[v], values[row]);
                }
            }
        } else {
            typename W::Dots dots[M][N] = {};
            const char* at = w + 64 + VECTOR * first;
            UNROLL for (int step = 0; step < W::STEPS; step += W::PAIRED, at += 128) {
                if (first == 0) fetch_ahead(at);
                UNROLL for (int pair = 0; pair < W::PAIRED; pair++, values += M) {
                    typename W::Weights weights[N];
                    UNROLL for (int v = 0; v < N; v++) weights[v] = W::part(at + VECTOR * v, pair);
                    UNROLL for (int row = 0; row < M; row++)
                        UNROLL for (int v = 0; v < N; v++)
                            dots[row][v] = W::dot(dots[row][v], weights[v], values[row]);
                }
            }
            UNROLL for (int v = 0; v < N; v++) {
                const typename W::Scale of(w, first + v);
                UNROLL for (int row = 0; row < M; row++) {
                    const Floats dot = __builtin_convertvector(W::finished(dots[row][v]), Floats);
                    sum[row][v] += of.centred(dot, x.sums[g * M + row]) * x.scales[g * M + row] * of.scale;
                }
            }
        }
    }
    UNROLL for (int row = 0; row < M; row++)
        UNROLL for (int v = 0; v < N; v++)
            sums[row][first + v] =
                W::HEAD ? sum[row][v] * load<Floats>(head + VECTOR * (first + v)) : sum[row][v];
}

// One panel times M rows, in tiles whose accumulators fit the registers.
template <class W, int M, int N = VECTORS>
static void panel(const char* w, const Rows& x, long groups, Floats (*sums)[VECTORS]) {
    if constexpr (N > 1 && M * N > W::TILE)
        panel<W, M, N / 2>(w, x, groups, sums);
    else
        for (int first = 0; first < VECTORS; first += N) tile<W, M, N>(w, first, x, groups, sums);
}

template <class W, int M = W::ROWS>
INLINE void any_panel(int rows, const char* w, const Rows& x, long groups, Floats (*sums)[VECTORS]) {
    if (rows == M)
        panel<W, M>(w, x, groups, sums);
    else if constexpr (M > 1)
        any_panel<W, M - 1>(rows, w, x, groups, sums);
}

constexpr long FEW = 4;  // rows of a step that is all overhead and reading of weights, if fewer

enum class Then { STORE, ADD, SWIGLU };

// out = rows x matrix. SWIGLU: silu(gate) * up. Each thread takes the `next` panels, an eighth of an equal share at
// a time, so that a thread on a slow or busy core computes fewer of them. With few rows it takes its whole share:
// a product is then microseconds of reading, which is fastest in one stretch.
template <class W>
static void product(
    const Matrix& matrix, const Rows& x, const Blocks& blocks, Then then, float* out, long stride,
    std::atomic<long>& next, int threads
) {
    const long panels = up(matrix.rows, PANEL) / PANEL;
    constexpr int HALF = VECTORS / 2;
    Floats sums[W::ROWS][VECTORS];
    const long share = (panels + threads - 1) / threads;
    const long some = blocks.rows < FEW ? share : share > 8 ? share / 8 : 1;
    for (long p = 0, end = 0;; p++) {
        if (p == end) {
            p = next.fetch_add(some, std::memory_order_relaxed);
            if (p >= panels) return;
            end = p + some < panels ? p + some : panels;
        }
        const char* w = matrix.data + p * (W::HEAD + matrix.groups * W::BYTES);
        for (long block = 0; block < blocks.count; block++) {
            const long first = blocks.start(block), M = blocks.start(block + 1) - first;
            const Rows rows = {
                x.values + first * matrix.groups * W::STEPS * W::UNITS,
                x.scales + first * matrix.groups,
                x.sums + first * matrix.groups,
            };
            any_panel<W>((int)M, w, rows, matrix.groups, sums);
            for (long row = 0; row < M; row++) {
                float* to = out + (first + row) * stride + p * (then == Then::SWIGLU ? PANEL / 2 : PANEL);
                if (then == Then::SWIGLU) {
                    UNROLL for (int v = 0; v < HALF; v++) {
                        const Floats gate = sums[row][v];
                        store(to + LANES * v, gate / (1.f + exponential(-gate)) * sums[row][HALF + v]);
                    }
                } else if (then == Then::ADD) {
                    UNROLL for (int v = 0; v < VECTORS; v++)
                        store(to + LANES * v, load<Floats>(to + LANES * v) + sums[row][v]);
                } else {
                    const long fit = matrix.rows - p * PANEL < PANEL ? matrix.rows - p * PANEL : PANEL;
                    std::memcpy(to, sums[row], sizeof(float) * fit);
                }
            }
        }
    }
}

// Row `row` of what a product takes: x, or RMSNorm(x) where a norm is given, in the format's precision.
template <class W>
static void pack_row(
    const float* x, const float* norm, float eps, long dim, long groups, const Blocks& blocks, long row,
    const Rows& to
) {
    float factor = 1;
    if (norm) {
        Floats squares[VECTORS] = {};
        for (long i = 0; i < groups * GROUP; i += GROUP)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const Floats values = load<Floats>(x + i + LANES * v);
                squares[v] += values * values;
            }
        UNROLL for (int v = 1; v < VECTORS; v++) squares[0] += squares[v];
        factor = 1 / std::sqrt(total(squares[0]) / dim + eps);
    }
    const long block = blocks.of(row), first = blocks.start(block), M = blocks.start(block + 1) - first;
    constexpr int UNITS = W::STEPS * W::UNITS;
    for (long g = 0; g < groups; g++) {
        Floats values[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) {
            values[v] = load<Floats>(x + g * GROUP + LANES * v);
            if (norm) values[v] = values[v] * factor * load<Floats>(norm + g * GROUP + LANES * v);
        }
        uint32_t units[UNITS];
        float scale = 0, sum = 0;
        W::pack(values, units, scale, sum);
        uint32_t* at = to.values + (first * groups + g * M) * UNITS + row - first;
        for (int unit = 0; unit < UNITS; unit++) at[unit * M] = units[unit];
        if constexpr (W::INTEGER) {
            to.scales[first * groups + g * M + row - first] = scale;
            to.sums[first * groups + g * M + row - first] = sum * W::ZERO;
        }
    }
}

// A row of a packed matrix, as fp32: the embedding of a token.
template <class W>
static void unpack_row(const Matrix& matrix, long row, float* out) {
    const char* at = matrix.data + row / PANEL * matrix.groups * W::BYTES;
    constexpr int COLUMNS = GROUP / W::STEPS, SCALES = W::INTEGER ? 64 : 0;
    for (long g = 0; g < matrix.groups; g++, at += W::BYTES) {
        float scale = 1;
        if (W::INTEGER) {
            const uint32_t bits = (uint32_t)load<uint16_t>(at + 2 * (row % PANEL)) << 16;
            std::memcpy(&scale, &bits, 4);
        }
        for (int step = 0; step < W::STEPS; step++)
            W::unpack(
                load<uint32_t>(at + SCALES + 128 * step + 4 * (row % PANEL)), scale, out + g * GROUP + step * COLUMNS
            );
    }
}
