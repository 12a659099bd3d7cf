// Pairs of bf16 for products on processors with AVX512-BF16: copies of a head in three layouts, and a register tile.
//
// `vdpbf16ps` multiplies pairs: lane i of the sum gets a[2i] b[2i] + a[2i+1] b[2i+1]. So one operand of a product
// is read as pairs that are broadcast, the other from a packed copy whose pairs lie along the summed dimension:
//
//     rows    (T, E)           as it is                            broadcast: Q, dO, P, dS
//     pairs   (T/2, E, 2)      rows 2t and 2t+1 interleaved        sums over tokens: K, V, Q, dO; broadcast: Pᵀ, dSᵀ
//     panels  (T/64, E/2, 64, 2)   64 rows, transposed by pairs    sums over the head's dimensions: K, V
//
// Rows beyond T are zero in every copy. Rotary positions are applied on the way in, and undone on the way out.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "heads.h"

namespace {

using bf16 = uint16_t;
using pair = uint32_t;  // two bf16, neighbours along the summed dimension

constexpr long HEIGHT = 4;   // rows of a register tile; its width is up to 4 vectors of 16
constexpr long PANEL = 64;   // keys of a panel

long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Buffer {  // of one thread, aligned for vectors
    explicit Buffer(long bytes) : data(static_cast<char*>(std::aligned_alloc(64, round_up(bytes, 64)))) {}
    ~Buffer() { std::free(data); }
    template <class T>
    T* take(long n) {
        T* here = reinterpret_cast<T*>(data + used);
        used += round_up(n * long(sizeof(T)), 64);
        return here;
    }
    char* data;
    long used = 0;
};

// 2^x to 2 ulp of fp32; 0 below -150. NaN stays NaN.
inline __m512 exp2_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.f), x);  // in this order NaN passes
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);  // exact, in [-1/2, 1/2]
    __m512 y = _mm512_set1_ps(1.3264727e-3f);  // the polynomial nearest to 2^f, 1e-7 away at most
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6715128e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.55073374e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.40222421e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.93146978e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.f));
    return _mm512_scalef_ps(y, n);
}

inline __m256 widen(const bf16* x) {  // 8 bf16 -> fp32
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

inline __m512 widen(__m256i x) {  // 16 bf16 -> fp32
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline void narrow(bf16* out, __m256 x) {  // 8 fp32 -> bf16, rounded to nearest
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(x)));
}

// --- copies -------------------------------------------------------------------------------------------------

// A head's tokens as rows (padded, E), rotated by `rotary`, zero beyond T.
void load_rows(bf16* rows, View<bf16> x, long b, long h, long T, long padded, long E, Rotary rotary) {
    const long half = E / 2;
    for (long t = 0; t < T; t++) {
        const bf16* in = x.row(b, h, t);
        bf16* out = rows + t * E;
        if (!rotary.cos) {
            std::memcpy(out, in, E * sizeof(bf16));
            continue;
        }
        for (long e = 0; e < half; e += 8) {
            const __m256 low = widen(in + e), high = widen(in + half + e);
            const __m256 cos = _mm256_loadu_ps(rotary.cos + t * half + e);
            const __m256 sin = _mm256_loadu_ps(rotary.sin + t * half + e);
            narrow(out + e, low * cos - high * sin);
            narrow(out + half + e, high * cos + low * sin);
        }
    }
    std::memset(rows + T * E, 0, (padded - T) * E * sizeof(bf16));
}

// The gradient of a head's tokens, fp32 rows (T, E), turned back by `rotary` and rounded.
void store_rows(View<bf16> x, long b, long h, const float* rows, long T, long E, Rotary rotary) {
    const long half = E / 2;
    for (long t = 0; t < T; t++) {
        const float* in = rows + t * E;
        bf16* out = x.row(b, h, t);
        for (long e = 0; e < half; e += 8) {
            const __m256 low = _mm256_loadu_ps(in + e), high = _mm256_loadu_ps(in + half + e);
            if (!rotary.cos) {
                narrow(out + e, low);
                narrow(out + half + e, high);
                continue;
            }
            const __m256 cos = _mm256_loadu_ps(rotary.cos + t * half + e);
            const __m256 sin = _mm256_loadu_ps(rotary.sin + t * half + e);
            narrow(out + e, low * cos + high * sin);
            narrow(out + half + e, high * cos - low * sin);
        }
    }
}

// rows -> pairs
void pack_pairs(pair* pairs, const bf16* rows, long padded, long E) {
    for (long t = 0; t < padded; t += 2)
        for (long e = 0; e < E; e++)
            pairs[t / 2 * E + e] = rows[t * E + e] | pair(rows[(t + 1) * E + e]) << 16;
}

// rows -> panels
void pack_panels(pair* panels, const bf16* rows, long padded, long E) {
    for (long panel = 0; panel < padded; panel += PANEL)
        for (long t = 0; t < PANEL; t++) {
            const pair* in = reinterpret_cast<const pair*>(rows + (panel + t) * E);
            pair* out = panels + panel * (E / 2) + t;
            for (long e = 0; e < E / 2; e++) out[e * PANEL] = in[e];
        }
}

// --- products -----------------------------------------------------------------------------------------------

// HEIGHT rows by N vectors of fp32 sums, in registers.
template <int N>
struct Tile {
    __m512 sums[HEIGHT][N];

    void clear() {
#pragma GCC unroll 4
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) sums[i][j] = _mm512_setzero_ps();
    }
    void load(const float* c, long row) {
#pragma GCC unroll 4
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) sums[i][j] = _mm512_loadu_ps(c + i * row + j * 16);
    }
    void store(float* c, long row) const {
#pragma GCC unroll 4
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) _mm512_storeu_ps(c + i * row + j * 16, sums[i][j]);
    }
    // sums += a b: pairs of a, `a_row` apart by row and `a_step` along the sum; of b, `b_step` along the sum.
    void add(const pair* a, long a_row, long a_step, const pair* b, long b_step, long steps) {
        for (long k = 0; k < steps; k++, a += a_step, b += b_step) {
            __m512bh right[N];
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + j * 16);
#pragma GCC unroll 4
            for (int i = 0; i < HEIGHT; i++) {
                const __m512bh left = (__m512bh)_mm512_set1_epi32(int(a[i * a_row]));
#pragma GCC unroll 4
                for (int j = 0; j < N; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
            }
        }
    }
};

// Call `run(width, column)` for each stretch of up to 4 vectors of `columns`, its width a constant.
template <class F>
inline void by_width(long columns, F run) {
    for (long column = 0; column < columns; column += 64) {
        switch (std::min(columns - column, 64L) / 16) {
            case 4: run(std::integral_constant<int, 4>(), column); break;
            case 3: run(std::integral_constant<int, 3>(), column); break;
            case 2: run(std::integral_constant<int, 2>(), column); break;
            case 1: run(std::integral_constant<int, 1>(), column); break;
        }
    }
}

}  // namespace
