// Causal attention, forward and backward, on processors with dot products of bf16 pairs (AVX512-BF16).
//
// A head's products at a context of some hundreds are small enough to stay in a core's second-level cache, so
// one core does a whole head (backward: a key-value head with all its query heads), nothing is shared, nothing
// is added atomically, and the result does not depend on the number of threads.
//
//     S = Q Kᵀ     P = softmax(mask(S · scale))     O = P V                     sums in fp32, operands bf16
//     dP = dO Vᵀ   dS = P · (dP - delta) · scale    dQ = dS K   dK = dSᵀ Q   dV = Pᵀ dO
//
// The layouts of the operands are those of bf16_pairs.h.

#ifndef __AVX512BF16__
extern "C" int attention_runs_here() { return 0; }
#else
#include "bf16_pairs.h"

extern "C" int attention_runs_here() { return 1; }

namespace {

constexpr long ALONE = 1 << 24;  // multiplications that are not worth the waiting for other threads
constexpr long ROWS = 64;    // query rows taken together
constexpr long KEYS = 512;   // keys whose scores are held at once

// The keys of a panel that any of HEIGHT rows from `row` on sees, whole vectors.
inline long visible(long row, long panel) { return std::min(PANEL, round_up(row + HEIGHT - panel, 16)); }

// Which of the 16 keys from `key` on does `row` see?
inline __mmask16 seen(long row, long key) {
    const long n = row - key + 1;
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1;
}

// --- forward ------------------------------------------------------------------------------------------------

struct Sizes {
    long spans, T, H, K, E, padded;
    float scale;
};

struct Forward {
    bf16 *q, *v_rows, *p;
    pair *k_panels, *v_pairs;
    float *scores, *o, *top, *sum, *mass;

    static long bytes(const Sizes& s) {
        return 4 * s.padded * s.E * 2 + ROWS * KEYS * 6 + ROWS * (s.E + 3) * 4 + 64 * 16;
    }
    Forward(Buffer& buffer, const Sizes& s) {
        q = buffer.take<bf16>(s.padded * s.E);
        v_rows = buffer.take<bf16>(s.padded * s.E);
        k_panels = buffer.take<pair>(s.padded * s.E / 2);
        v_pairs = buffer.take<pair>(s.padded * s.E / 2);
        p = buffer.take<bf16>(ROWS * KEYS);
        scores = buffer.take<float>(ROWS * KEYS);
        o = buffer.take<float>(ROWS * s.E);
        top = buffer.take<float>(ROWS);
        sum = buffer.take<float>(ROWS);
        mass = buffer.take<float>(ROWS);
    }

    void load(const Sizes& s, View<bf16> q_, View<bf16> k, View<bf16> v, long b, long h, Rotary rotary) {
        const long group = s.H / s.K;
        load_rows(v_rows, k, b, h / group, s.T, s.padded, s.E, rotary);
        pack_panels(k_panels, v_rows, s.padded, s.E);
        load_rows(v_rows, v, b, h / group, s.T, s.padded, s.E, {});
        pack_pairs(v_pairs, v_rows, s.padded, s.E);
        load_rows(q, q_, b, h, s.T, s.padded, s.E, rotary);
    }

    void begin() {
        std::fill_n(top, ROWS, -INFINITY);
        std::fill_n(sum, ROWS, 0.f);
        std::fill_n(mass, ROWS, 0.f);
    }

    // Scores of rows [start, end) with keys [first, last), -inf where masked.
    void score(const Sizes& s, long start, long end, long first, long last) {
        for (long panel = first; panel < last; panel += PANEL)
            for (long row = std::max(start, panel / HEIGHT * HEIGHT); row < end; row += HEIGHT)
                by_width(visible(row, panel), [&](auto width, long) {
                    Tile<width> tile;
                    tile.clear();
                    const pair* left = reinterpret_cast<const pair*>(q + row * s.E);
                    tile.add(left, s.E / 2, 1, k_panels + panel * (s.E / 2), PANEL, s.E / 2);
                    if (row < panel + PANEL)
#pragma GCC unroll 4
                        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 4
                            for (int j = 0; j < width; j++)
                                tile.sums[i][j] = _mm512_mask_mov_ps(
                                    _mm512_set1_ps(-INFINITY), seen(row + i, panel + j * 16), tile.sums[i][j]);
                    tile.store(scores + (row - start) * KEYS + panel - first, KEYS);
                });
    }

    // exp of scores less their greatest so far, in bf16; `o`, `sum` and `mass` are brought down to the same greatest.
    // `sum` adds them before they are rounded, for lse; `mass` after it: o divided by it is a mean of rows of v.
    void soften(const Sizes& s, long start, long end, long first, long last) {
        const float factor = s.scale * LOG2_E;
        for (long row = start; row < end; row++) {
            const float* in = scores + (row - start) * KEYS;
            bf16* out = p + (row - start) * KEYS;
            const long keys = std::min(last, round_up(row / HEIGHT * HEIGHT + HEIGHT, 16)) - first;
            if (keys <= 0) continue;
            __m512 most = _mm512_set1_ps(-INFINITY);
            for (long key = 0; key < keys; key += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(in + key));
            const float before = top[row - start];
            const float now = std::max(before, _mm512_reduce_max_ps(most) * factor);
            const __m512 shift = _mm512_set1_ps(-now), by = _mm512_set1_ps(factor);
            __m512 exact = _mm512_setzero_ps(), rounded = _mm512_setzero_ps();
            for (long key = 0; key < keys; key += 16) {
                const __m512 e = exp2_ps(_mm512_fmadd_ps(_mm512_loadu_ps(in + key), by, shift));
                const __m256i half = (__m256i)_mm512_cvtneps_pbh(e);
                exact = _mm512_add_ps(exact, e);
                rounded = _mm512_add_ps(rounded, widen(half));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + key), half);
            }
            const float less = first ? std::exp2(before - now) : 0;
            sum[row - start] = sum[row - start] * less + _mm512_reduce_add_ps(exact);
            mass[row - start] = mass[row - start] * less + _mm512_reduce_add_ps(rounded);
            top[row - start] = now;
            if (first)
                for (long e = 0; e < s.E; e++) o[(row - start) * s.E + e] *= less;
        }
    }

    // o += p v
    void gather(const Sizes& s, long start, long end, long first, long last) {
        for (long row = start; row < end; row += HEIGHT)
            by_width(s.E, [&](auto width, long column) {
                const long steps = (std::min(last, row + HEIGHT) - first) / 2;
                if (steps <= 0) return;
                float* sums = o + (row - start) * s.E + column;
                Tile<width> tile;
                first ? tile.load(sums, s.E) : tile.clear();
                const pair* left = reinterpret_cast<const pair*>(p + (row - start) * KEYS);
                tile.add(left, KEYS / 2, 1, v_pairs + first / 2 * s.E + column, s.E, steps);
                tile.store(sums, s.E);
            });
    }

    void store(const Sizes& s, View<bf16> out, float* lse, long b, long h, long start, long end) {
        for (long row = start; row < std::min(end, s.T); row++) {
            const float share = 1 / mass[row - start];
            for (long e = 0; e < s.E; e += 8)
                narrow(out.row(b, h, row) + e, _mm256_loadu_ps(o + (row - start) * s.E + e) * _mm256_set1_ps(share));
            lse[row] = (top[row - start] + std::log2(sum[row - start])) * LN_2;
        }
    }
};

// --- backward -----------------------------------------------------------------------------------------------

struct Backward {
    bf16 *rows, *q, *dO, *ds;
    pair *k_panels, *v_panels, *k_pairs, *q_pairs, *do_pairs, *p_pairs, *ds_pairs;
    float *dq, *dk, *dv, *lse, *delta;

    static long bytes(const Sizes& s) {
        return 8 * s.padded * s.E * 2 + 3 * s.padded * s.E * 4 + 3 * ROWS * KEYS * 2 + 2 * s.padded * 4 + 64 * 32;
    }
    Backward(Buffer& buffer, const Sizes& s) {
        const long n = s.padded * s.E;
        rows = buffer.take<bf16>(n), q = buffer.take<bf16>(n), dO = buffer.take<bf16>(n);
        k_panels = buffer.take<pair>(n / 2), v_panels = buffer.take<pair>(n / 2);
        k_pairs = buffer.take<pair>(n / 2), q_pairs = buffer.take<pair>(n / 2), do_pairs = buffer.take<pair>(n / 2);
        ds = buffer.take<bf16>(ROWS * KEYS);
        p_pairs = buffer.take<pair>(ROWS * KEYS / 2), ds_pairs = buffer.take<pair>(ROWS * KEYS / 2);
        dq = buffer.take<float>(n), dk = buffer.take<float>(n), dv = buffer.take<float>(n);
        lse = buffer.take<float>(s.padded), delta = buffer.take<float>(s.padded);
    }

    void load_keys(const Sizes& s, View<bf16> k, View<bf16> v, long b, long h, Rotary rotary) {
        load_rows(rows, k, b, h, s.T, s.padded, s.E, rotary);
        pack_panels(k_panels, rows, s.padded, s.E);
        pack_pairs(k_pairs, rows, s.padded, s.E);
        load_rows(rows, v, b, h, s.T, s.padded, s.E, {});
        pack_panels(v_panels, rows, s.padded, s.E);
        std::memset(dk, 0, s.padded * s.E * sizeof(float));
        std::memset(dv, 0, s.padded * s.E * sizeof(float));
    }

    void load_queries(const Sizes& s, View<bf16> q_, View<bf16> o, View<bf16> do_,
                      const float* lse_, long b, long h, Rotary rotary) {
        load_rows(q, q_, b, h, s.T, s.padded, s.E, rotary);
        pack_pairs(q_pairs, q, s.padded, s.E);
        load_rows(dO, do_, b, h, s.T, s.padded, s.E, {});
        pack_pairs(do_pairs, dO, s.padded, s.E);
        for (long t = 0; t < s.padded; t++) {
            __m256 sum = _mm256_setzero_ps();
            if (t < s.T)
                for (long e = 0; e < s.E; e += 8) sum += widen(dO + t * s.E + e) * widen(o.row(b, h, t) + e);
            delta[t] = _mm512_reduce_add_ps(_mm512_zextps256_ps512(sum));
            lse[t] = t < s.T ? lse_[t] * LOG2_E : 0;
        }
        std::memset(dq, 0, s.padded * s.E * sizeof(float));
    }

    // p and ds of rows [start, end) with keys [first, last), in bf16.
    void score(const Sizes& s, long start, long end, long first, long last) {
        const __m512 factor = _mm512_set1_ps(s.scale * LOG2_E), scale = _mm512_set1_ps(s.scale);
        const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                             22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        for (long panel = first; panel < last; panel += PANEL)
            for (long row = std::max(start, panel / HEIGHT * HEIGHT); row < end; row += HEIGHT)
                by_width(visible(row, panel), [&](auto width, long) {
                    const long at = panel - first;
                    alignas(64) float p[HEIGHT * width * 16];
                    Tile<width> tile;
                    tile.clear();
                    tile.add(reinterpret_cast<const pair*>(q + row * s.E), s.E / 2, 1,
                             k_panels + panel * (s.E / 2), PANEL, s.E / 2);
#pragma GCC unroll 4
                    for (int i = 0; i < HEIGHT; i++) {
                        const __m512 shift = _mm512_set1_ps(-lse[row + i]);
#pragma GCC unroll 4
                        for (int j = 0; j < width; j++)
                            tile.sums[i][j] = exp2_ps(_mm512_fmadd_ps(tile.sums[i][j], factor, shift));
                    }
                    if (row < panel + PANEL)
#pragma GCC unroll 4
                        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 4
                            for (int j = 0; j < width; j++)
                                tile.sums[i][j] =
                                    _mm512_maskz_mov_ps(seen(row + i, panel + j * 16), tile.sums[i][j]);
                    tile.store(p, width * 16);
#pragma GCC unroll 2
                    for (int i = 0; i < HEIGHT; i += 2)
#pragma GCC unroll 4
                        for (int j = 0; j < width; j++)
                            _mm512_storeu_si512(
                                p_pairs + (row - start + i) / 2 * KEYS + at + j * 16,
                                _mm512_permutexvar_epi16(
                                    zip, (__m512i)_mm512_cvtne2ps_pbh(tile.sums[i + 1][j], tile.sums[i][j])));
                    tile.clear();
                    tile.add(reinterpret_cast<const pair*>(dO + row * s.E), s.E / 2, 1,
                             v_panels + panel * (s.E / 2), PANEL, s.E / 2);
#pragma GCC unroll 4
                    for (int i = 0; i < HEIGHT; i++) {
                        const __m512 less = _mm512_set1_ps(delta[row + i]);
#pragma GCC unroll 4
                        for (int j = 0; j < width; j++)
                            tile.sums[i][j] = _mm512_mul_ps(
                                _mm512_mul_ps(_mm512_sub_ps(tile.sums[i][j], less), scale),
                                _mm512_load_ps(p + (i * width + j) * 16));
                    }
#pragma GCC unroll 2
                    for (int i = 0; i < HEIGHT; i += 2)
#pragma GCC unroll 4
                        for (int j = 0; j < width; j++) {
                            const __m512i both =
                                (__m512i)_mm512_cvtne2ps_pbh(tile.sums[i + 1][j], tile.sums[i][j]);
                            bf16* out = ds + (row - start + i) * KEYS + at + j * 16;
                            _mm256_storeu_si256((__m256i*)out, _mm512_castsi512_si256(both));
                            _mm256_storeu_si256((__m256i*)(out + KEYS), _mm512_extracti64x4_epi64(both, 1));
                            _mm512_storeu_si512(ds_pairs + (row - start + i) / 2 * KEYS + at + j * 16,
                                                _mm512_permutexvar_epi16(zip, both));
                        }
                });
    }

    // dq += ds k of the rows; dk += dsᵀ q, dv += pᵀ do of the keys.
    void gather(const Sizes& s, long start, long end, long first, long last) {
        const long E = s.E;
        for (long row = start; row < end; row += HEIGHT) {
            const long steps = (std::min(last, row + HEIGHT) - first) / 2;
            if (steps <= 0) continue;
            by_width(E, [&](auto width, long column) {
                Tile<width> tile;
                tile.load(dq + row * E + column, E);
                tile.add(reinterpret_cast<const pair*>(ds + (row - start) * KEYS), KEYS / 2, 1,
                         k_pairs + first / 2 * E + column, E, steps);
                tile.store(dq + row * E + column, E);
            });
        }
        for (long key = first; key < std::min(last, end); key += HEIGHT) {
            const long row = std::max(start, key), steps = (end - row) / 2;
            by_width(E, [&](auto width, long column) {
                const long left = (row - start) / 2 * KEYS + key - first, right = row / 2 * E + column;
                Tile<width> tile;
                tile.load(dv + key * E + column, E);
                tile.add(p_pairs + left, 1, KEYS, do_pairs + right, E, steps);
                tile.store(dv + key * E + column, E);
                tile.load(dk + key * E + column, E);
                tile.add(ds_pairs + left, 1, KEYS, q_pairs + right, E, steps);
                tile.store(dk + key * E + column, E);
            });
        }
    }
};

Sizes sizes(const int64_t* shape) {
    const long E = shape[4];
    return {shape[0], shape[1], shape[2], shape[3], E, round_up(shape[1], PANEL), 1 / std::sqrt(float(E))};
}

// The sizes of one span, from those of all.
Sizes sizes(Sizes all, const Span& span) {
    all.T = span.tokens, all.padded = round_up(span.tokens, PANEL);
    return all;
}

}  // namespace

// tensors: q, k, v, o. shape: number of spans, T, H, K, E. lse: (B, H, T). Positions are counted within a span.
extern "C" void attention_forward(const int64_t* tensors, float* lse, const float* cos, const float* sin,
                                  const int64_t* shape, const int64_t* strides, const int64_t* spans_) {
    const Sizes all = sizes(shape);
    const auto* spans = reinterpret_cast<const Span*>(spans_);
    const auto q = view<bf16>(tensors, strides, 0), k = view<bf16>(tensors, strides, 1);
    const auto v = view<bf16>(tensors, strides, 2);
    const auto o = view<bf16>(tensors, strides, 3);
#pragma omp parallel if (all.spans * all.H * all.T * all.T * all.E > ALONE)
    {
        Buffer buffer(Forward::bytes(all));
        Forward head(buffer, all);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < all.spans * all.H; i++) {
            const Span& span = spans[i / all.H];
            const Sizes s = sizes(all, span);
            const long b = span.row, h = i % s.H, token = span.start;
            head.load(s, q.from(token), k.from(token), v.from(token), b, h, {cos, sin});
            for (long start = 0; start < s.T; start += ROWS) {
                const long end = std::min(start + ROWS, round_up(s.T, HEIGHT));
                head.begin();
                for (long first = 0; first < end; first += KEYS) {
                    const long last = std::min(first + KEYS, round_up(end, 16));
                    head.score(s, start, end, first, last);
                    head.soften(s, start, end, first, last);
                    head.gather(s, start, end, first, last);
                }
                head.store(s, o.from(token), lse + (b * s.H + h) * all.T + token, b, h, start, end);
            }
        }
    }
}

// tensors: q, k, v, o, do, and dq, dk, dv, which are written.
extern "C" void attention_backward(const int64_t* tensors, const float* lse, const float* cos, const float* sin,
                                   const int64_t* shape, const int64_t* strides, const int64_t* spans_) {
    const Sizes all = sizes(shape);
    const auto* spans = reinterpret_cast<const Span*>(spans_);
    const auto q = view<bf16>(tensors, strides, 0), k = view<bf16>(tensors, strides, 1);
    const auto v = view<bf16>(tensors, strides, 2);
    const auto o = view<bf16>(tensors, strides, 3), dO = view<bf16>(tensors, strides, 4);
    const auto dq = view<bf16>(tensors, strides, 5), dk = view<bf16>(tensors, strides, 6);
    const auto dv = view<bf16>(tensors, strides, 7);
    const Rotary rotary = {cos, sin};
#pragma omp parallel if (all.spans * all.H * all.T * all.T * all.E > ALONE)
    {
        Buffer buffer(Backward::bytes(all));
        Backward head(buffer, all);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < all.spans * all.K; i++) {
            const Span& span = spans[i / all.K];
            const Sizes s = sizes(all, span);
            const long b = span.row, kv = i % s.K, group = s.H / s.K, token = span.start;
            head.load_keys(s, k.from(token), v.from(token), b, kv, rotary);
            for (long h = kv * group; h < (kv + 1) * group; h++) {
                head.load_queries(s, q.from(token), o.from(token), dO.from(token),
                                  lse + (b * s.H + h) * all.T + token, b, h, rotary);
                for (long start = 0; start < s.T; start += ROWS) {
                    const long end = std::min(start + ROWS, round_up(s.T, HEIGHT));
                    for (long first = 0; first < end; first += KEYS) {
                        const long last = std::min(first + KEYS, round_up(end, 16));
                        head.score(s, start, end, first, last);
                        head.gather(s, start, end, first, last);
                    }
                }
                store_rows(dq.from(token), b, h, head.dq, s.T, s.E, rotary);
            }
            store_rows(dk.from(token), b, kv, head.dk, s.T, s.E, rotary);
            store_rows(dv.from(token), b, kv, head.dv, s.T, s.E, {});
        }
    }
}
#endif
