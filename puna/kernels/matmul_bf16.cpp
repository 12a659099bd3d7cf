// The three matrix products of a linear layer in bf16, on processors with dot products of bf16 pairs
// (AVX512-BF16) and no matrix unit.
//
//     y = x Wᵀ      dx = dy W      dW += dyᵀ x       sums in fp32; W and dW fp32, rounded to bf16 as they are packed
//
// `vdpbf16ps` multiplies pairs: lane i of the sum gets a[2i] b[2i] + a[2i+1] b[2i+1]. A register tile of sums
// takes one operand's pairs one by one, each broadcast, and the other's as vectors, from a packed copy whose pairs
// lie along the summed dimension, in panels as wide as the tile:
//
//     panels  (outputs/64, sums/2, 64, 2)
//
// x and dy are broadcast as they lie. For dW, which sums over rows, both are packed, a stretch of rows at a time.
// Each sum is added up in one order, whatever the number of threads.

extern "C" int products_run_here() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

#ifdef __AVX512BF16__
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace {

using bf16 = uint16_t;
using pair = uint32_t;  // two bf16, neighbours along the summed dimension

constexpr long ALONE = 1 << 24;  // multiplications (0.2 ms) that are not worth the waiting for other threads
constexpr long PANEL = 64;    // outputs of a panel of weights: tiles of 6 rows by 4 vectors
constexpr long ROWS = 96;     // rows that one thread takes at a time
constexpr long SUMS = 2048;   // summed at a time: a panel of them fits the second-level cache
constexpr long STRETCH = 1024;  // rows packed at a time for dW
constexpr long LEFT = 16, RIGHT = 48;  // widths of their panels: tiles of 8 rows by 3 vectors

long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

// M rows by N vectors of sums += pairs of a, broadcast, times vectors of pairs of b.
template <int M, int N>
inline void add(__m512 (&sums)[M][N], const pair* a, long a_row, long a_step, const pair* b, long b_step, long steps) {
    for (long k = 0; k < steps; k++, a += a_step, b += b_step) {
        __m512bh right[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + j * 16);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(int(a[i * a_row]));
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
        }
    }
}

// As `add`, on sums in memory, from nought if `first`; rounded to `rounded` instead if that is given.
template <int M, int N>
void add_in_memory(float* sums, long row, bool first, bf16* rounded, long rounded_row, const pair* a, long a_row,
                   long a_step, const pair* b, long b_step, long steps) {
    __m512 s[M][N];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) s[i][j] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + i * row + j * 16);
    add<M, N>(s, a, a_row, a_step, b, b_step, steps);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++)
            if (rounded)
                _mm256_storeu_si256((__m256i*)(rounded + i * rounded_row + j * 16),
                                    (__m256i)_mm512_cvtneps_pbh(s[i][j]));
            else
                _mm512_storeu_ps(sums + i * row + j * 16, s[i][j]);
}

template <int M>
void add_in_memory(long vectors, float* sums, long row, bool first, bf16* rounded, long rounded_row, const pair* a,
                   long a_row, long a_step, const pair* b, long b_step, long steps) {
    const auto run = vectors == 4   ? add_in_memory<M, M == 8 ? 3 : 4>
                     : vectors == 3 ? add_in_memory<M, 3>
                     : vectors == 2 ? add_in_memory<M, 2>
                                    : add_in_memory<M, 1>;
    run(sums, row, first, rounded, rounded_row, a, a_row, a_step, b, b_step, steps);
}

// Two rows of 16 as 16 pairs.
inline __m512i zip(__m256i a, __m256i b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                           6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
}

inline __m256i round16(const float* x) { return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)); }

// Rows [start, end) of x (rows, columns) as panels (columns/width, rows/2, width, 2); a last odd row gets a row of 0.
void pack_rows(const bf16* x, long columns, long start, long end, long width, pair* panels) {
    const long steps = (end - start + 1) / 2;
#pragma omp for schedule(static) nowait
    for (long k = 0; k < steps; k++) {
        const bf16* row = x + (start + 2 * k) * columns;
        const bool alone = start + 2 * k + 1 == end;
        for (long c = 0; c < columns; c += 16) {
            const __m256i a = _mm256_loadu_si256((const __m256i*)(row + c));
            const __m256i b = alone ? _mm256_setzero_si256() : _mm256_loadu_si256((const __m256i*)(row + columns + c));
            _mm512_storeu_si512(panels + (c / width * steps + k) * width + c % width, zip(a, b));
        }
    }
}

}  // namespace

// Several weights of I columns side by side, `outputs` rows in all, are packed one by one: `weight` is rows
// [first, first + O) of them.

// weight (O, I) -> panels (outputs/64, I/2, 64, 2), for x Wᵀ.
extern "C" void pack_outputs(const float* weight, pair* panels, long O, long I, long first) {
#pragma omp parallel for schedule(static) if (O * I > ALONE / 64)
    for (long o = 0; o < O; o += 16) {
        pair* out = panels + (first + o) / PANEL * PANEL * (I / 2) + (first + o) % PANEL;
        for (long i = 0; i < I; i += 16) {
            alignas(64) pair block[16][8];
            for (long t = 0; t < 16; t++) _mm256_store_si256((__m256i*)block[t], round16(weight + (o + t) * I + i));
            for (long k = 0; k < 8; k++)
                for (long t = 0; t < 16; t++) out[(i / 2 + k) * PANEL + t] = block[t][k];
        }
    }
}

// weight (O, I) -> panels (I/64, outputs/2, 64, 2), for dy W.
extern "C" void pack_inputs(const float* weight, pair* panels, long O, long I, long first, long outputs) {
#pragma omp parallel for schedule(static) if (O * I > ALONE / 64)
    for (long o = 0; o < O; o += 2)
        for (long i = 0; i < I; i += 16)
            _mm512_storeu_si512(panels + (i / PANEL * (outputs / 2) + (first + o) / 2) * PANEL + i % PANEL,
                                zip(round16(weight + o * I + i), round16(weight + (o + 1) * I + i)));
}

// out (rows, outputs) = x (rows, sums) times panels (outputs/64, sums/2, 64, 2).
extern "C" void multiply(const bf16* x, const pair* panels, bf16* out, long rows, long sums, long outputs) {
#pragma omp parallel if (rows * sums * outputs > ALONE)
    {
        alignas(64) float partial[ROWS * PANEL];
#pragma omp for schedule(dynamic)
        for (long start = 0; start < rows; start += ROWS) {
            const long end = std::min(start + ROWS, rows);
            for (long o = 0; o < outputs; o += PANEL)
                for (long k = 0; k < sums; k += SUMS) {
                    const long steps = std::min(SUMS, sums - k) / 2;
                    const pair* right = panels + o * (sums / 2) + k / 2 * PANEL;
                    for (long r = start, height; r < end; r += height) {
                        height = end - r >= 6 ? 6 : 1;
                        const auto run = height == 6 ? add_in_memory<6> : add_in_memory<1>;
                        run(std::min(PANEL, outputs - o) / 16, partial + (r - start) * PANEL, PANEL, k == 0,
                            k + SUMS >= sums ? out + r * outputs + o : nullptr, outputs,
                            reinterpret_cast<const pair*>(x + r * sums + k), sums / 2, 1, right, PANEL, steps);
                    }
                }
        }
    }
}

// gradient (O, I) += dy (rows, O)ᵀ x (rows, I); set instead of added to if `first`.
extern "C" void add_gradient(const bf16* dy, const bf16* x, float* gradient, long rows, long O, long I, int first) {
    const long most = (std::min(STRETCH, rows) + 1) / 2;
    const auto buffer = [](long pairs) {
        return std::unique_ptr<pair, void (*)(void*)>(
            static_cast<pair*>(std::aligned_alloc(64, pairs * sizeof(pair))), std::free);
    };
    const auto left = buffer(most * round_up(O, LEFT)), right = buffer(most * round_up(I, RIGHT));
#pragma omp parallel if (rows * O * I > ALONE)
    for (long start = 0; start < rows; start += STRETCH) {
        const long end = std::min(start + STRETCH, rows), steps = (end - start + 1) / 2;
        pack_rows(dy, O, start, end, LEFT, left.get());
        pack_rows(x, I, start, end, RIGHT, right.get());
#pragma omp barrier
#pragma omp for schedule(static)
        for (long o = 0; o < O; o += LEFT * 3)
            for (long i = 0; i < I; i += RIGHT)
                for (long p = o; p < std::min(O, o + LEFT * 3); p += 8)
                    add_in_memory<8>(std::min(RIGHT, I - i) / 16, gradient + p * I + i, I, first && !start, nullptr, 0,
                                     left.get() + p / LEFT * LEFT * steps + p % LEFT, 1, LEFT,
                                     right.get() + i * steps, RIGHT, steps);
    }
}
#endif
