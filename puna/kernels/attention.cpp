// Causal attention, forward and backward, with fp32 arithmetic, for any instruction set. The tensors are fp32 or bf16.
//
// One core does a whole head (backward: a key-value head with all its query heads) a block of rows and keys at a time,
// so that the operands stay in its second-level cache. Nothing is shared, nothing is added atomically, and the result
// does not depend on the number of threads.
//
//     S = Q Kᵀ     P = softmax(mask(S · scale))     O = P V
//     dP = dO Vᵀ   dS = P · (dP - delta) · scale    dQ = dS K   dK = dSᵀ Q   dV = Pᵀ dO
//
// A product broadcasts the numbers of its left operand one by one, and multiplies them by vectors of the right:
//
//     rows    (T, stride)          as it is; left and right operand of sums over tokens
//     panels  (T/WIDTH, E, WIDTH)  transposed, right operand of sums over the head's dimensions: K, V
//
// A row is padded to whole vectors, and its stride to an odd number of cache lines, so that the same column of many
// rows falls into different sets of the cache. Everything beyond T and E is zero. Rotary positions are applied on the
// way in, and undone on the way out.

#include "heads.h"
#include "tiles.h"

namespace {

constexpr long ROWS = 96;  // query rows taken together: any HEIGHT and any WIDTH divide it
constexpr long KEYS = 96;  // keys taken together, likewise
constexpr long SCORES = KEYS + 16;  // stride of a block of scores: an odd number of cache lines
constexpr long AHEAD = 8;  // tokens that are fetched ahead
static_assert(ROWS % HEIGHT == 0 && ROWS % WIDTH == 0 && KEYS % HEIGHT == 0 && KEYS % WIDTH == 0);

struct Sizes {
    long spans, T, H, K, E, stride, columns, padded;
    float scale;
};

Sizes sizes(const int64_t* shape) {
    const long T = shape[1], E = shape[4], lines = round_up(E, 16) / 16 | 1;
    return {shape[0], T, shape[2], shape[3], E, lines * 16, round_up(E, LANES), round_up(T, ROWS),
            1 / std::sqrt(float(E))};
}

// The sizes of one span, from those of all.
Sizes sizes(Sizes all, const Span& span) {
    all.T = span.tokens, all.padded = round_up(span.tokens, ROWS);
    return all;
}

inline float sum(Floats x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

inline float greatest(Floats x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = std::max(most, x[i]);
    return most;
}

// --- copies ----------------------------------------------------------------------------------------------------------

// Fetch a head's token `t`: its rows lie too far apart for the processor to guess.
template <int WRITE, class T>
inline void fetch(View<T> x, long b, long h, long t, const Sizes& s) {
    if (t >= s.T) return;
    for (long e = 0; e < s.E; e += 64 / long(sizeof(T))) __builtin_prefetch(x.row(b, h, t) + e, WRITE);
}

// Turn the pairs (row[i], row[i + half]) by the angles of a token, or with `sign` -1 back.
inline void rotate(float* row, const float* cos, const float* sin, long half, float sign) {
    long e = 0;
    for (; e + LANES <= half; e += LANES) {
        const Floats low = load(row + e), high = load(row + half + e), c = load(cos + e), s = load(sin + e) * sign;
        store(row + e, low * c - high * s);
        store(row + half + e, high * c + low * s);
    }
    for (; e < half; e++) {
        const float low = row[e], high = row[half + e], s = sin[e] * sign;
        row[e] = low * cos[e] - high * s;
        row[half + e] = high * cos[e] + low * s;
    }
}

// A head's tokens as rows, rotated by `rotary`.
template <class T>
void load_rows(float* rows, View<T> x, long b, long h, const Sizes& s, Rotary rotary) {
    const long half = s.E / 2;
    for (long t = 0; t < AHEAD; t++) fetch<0>(x, b, h, t, s);
    for (long t = 0; t < s.T; t++) {
        fetch<0>(x, b, h, t + AHEAD, s);
        float* out = rows + t * s.stride;
        convert(x.row(b, h, t), out, s.E);
        std::fill(out + s.E, out + s.columns, 0.f);
        if (rotary.cos) rotate(out, rotary.cos + t * half, rotary.sin + t * half, half, 1);
    }
    std::fill(rows + s.T * s.stride, rows + s.padded * s.stride, 0.f);
}

// The gradient of a head's tokens, turned back by `rotary`. The rows are destroyed.
template <class T>
void store_rows(View<T> x, long b, long h, float* rows, const Sizes& s, Rotary rotary) {
    const long half = s.E / 2;
    for (long t = 0; t < s.T; t++) {
        fetch<1>(x, b, h, t + AHEAD, s);
        float* row = rows + t * s.stride;
        if (rotary.cos) rotate(row, rotary.cos + t * half, rotary.sin + t * half, half, -1);
        convert(row, x.row(b, h, t), s.E);
    }
}

// rows -> panels
void pack_panels(float* panels, const float* rows, const Sizes& s) {
    for (long panel = 0; panel < s.padded; panel += WIDTH)
        for (long e = 0; e < s.E; e++)
            for (long t = 0; t < WIDTH; t++) panels[panel * s.E + e * WIDTH + t] = rows[(panel + t) * s.stride + e];
}

// --- products --------------------------------------------------------------------------------------------------------

// Call `run(N, column)` for each tile of N vectors, N a constant.
template <class F>
inline void by_width(long columns, F run) {
    long column = 0;
    for (; column + WIDTH <= columns; column += WIDTH) run(std::integral_constant<int, VECTORS>(), column);
    if (column < columns) run(std::integral_constant<int, 1>(), column);
}

// sums (HEIGHT rows, columns) += left right, from zero if `first`.
inline void add_columns(long columns, float* sums, long stride, bool first, const float* left, long left_row,
                        long left_step, const float* right, long steps) {
    by_width(columns, [&](auto N, long column) {
        Tile<HEIGHT, N> tile;
        first ? tile.clear() : tile.load(sums + column, stride);
        tile.add(left, left_row, left_step, right + column, stride, steps);
        tile.store(sums + column, stride);
    });
}

// The scores of HEIGHT rows of `left` with the keys of a panel.
inline Tile<HEIGHT, VECTORS> scores_of(const float* left, const float* panel, const Sizes& s) {
    Tile<HEIGHT, VECTORS> tile;
    tile.clear();
    tile.add(left, s.stride, 1, panel, WIDTH, s.E);
    return tile;
}

// Replace what the rows from `row` on do not see of the keys from `key` on.
inline void mask(Tile<HEIGHT, VECTORS>& tile, long row, long key, float hidden) {
    if (row >= key + WIDTH - 1) return;
    Ints lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
#pragma GCC unroll 12
    for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
        for (int j = 0; j < VECTORS; j++)
            tile.sums[i][j] = lanes > int32_t(row + i - key - j * LANES) ? Floats{} + hidden : tile.sums[i][j];
}

// --- forward ---------------------------------------------------------------------------------------------------------

template <class T>
struct Forward {
    Sizes s;
    Buffer buffer;
    float *q, *v, *k_panels, *scores, *o, *top, *total;

    explicit Forward(const Sizes& s) : s(s), buffer(3 * s.padded * s.stride + ROWS * (SCORES + s.stride + 2) + 256) {
        q = buffer.take(s.padded * s.stride), v = buffer.take(s.padded * s.stride);
        k_panels = buffer.take(s.padded * s.E);
        scores = buffer.take(ROWS * SCORES), o = buffer.take(ROWS * s.stride);
        top = buffer.take(ROWS), total = buffer.take(ROWS);
    }

    void load(View<T> q_, View<T> k, View<T> v_, long b, long h, Rotary rotary) {
        const long kv = h / (s.H / s.K);
        load_rows(v, k, b, kv, s, rotary);
        pack_panels(k_panels, v, s);
        load_rows(v, v_, b, kv, s, {});
        load_rows(q, q_, b, h, s, rotary);
    }

    // o, top and total of rows [start, end) over all keys that they see.
    void attend(long start, long end) {
        std::fill_n(top, ROWS, -INFINITY);
        std::fill_n(total, ROWS, 0.f);
        for (long first = 0; first < end; first += KEYS) {
            const long last = std::min(first + KEYS, end);
            for (long panel = first; panel < last; panel += WIDTH)
                for (long row = std::max(start, panel / HEIGHT * HEIGHT); row < end; row += HEIGHT) {
                    auto tile = scores_of(q + row * s.stride, k_panels + panel * s.E, s);
                    mask(tile, row, panel, -INFINITY);
                    tile.store(scores + (row - start) * SCORES + panel - first, SCORES);
                }
            for (long row = start; row < end; row += HEIGHT) {
                const long keys = std::min(last, row + HEIGHT) - first;
                if (keys <= 0) continue;
                for (long i = row - start; i < row - start + HEIGHT; i++) soften(i, round_up(keys, WIDTH), first == 0);
                add_columns(s.columns, o + (row - start) * s.stride, s.stride, first == 0,
                            scores + (row - start) * SCORES, SCORES, 1, v + first * s.stride, keys);
            }
        }
    }

    // exp of a row's scores less their greatest so far; `o` and `total` are brought down to the same greatest.
    void soften(long i, long keys, bool first) {
        float* row = scores + i * SCORES;
        const float factor = s.scale * LOG2_E;
        Floats most = ::load(row);
        for (long key = LANES; key < keys; key += LANES) {
            const Floats x = ::load(row + key);
            most = x > most ? x : most;
        }
        const float now = std::max(top[i], greatest(most) * factor);
        Floats sums{};
        for (long key = 0; key < keys; key += LANES) {
            const Floats e = exp2(::load(row + key) * factor - now);
            sums += e;
            ::store(row + key, e);
        }
        const float less = first ? 0 : std::exp2(top[i] - now);
        total[i] = total[i] * less + sum(sums);
        top[i] = now;
        if (!first && less != 1)
            for (long e = 0; e < s.columns; e++) o[i * s.stride + e] *= less;
    }

    void store(View<T> out, float* lse, long b, long h, long start, long end) {
        for (long t = start; t < std::min(end, s.T); t++) {
            float* row = o + (t - start) * s.stride;
            for (long e = 0; e < s.E; e++) row[e] /= total[t - start];
            convert(row, out.row(b, h, t), s.E);
            lse[t] = (top[t - start] + std::log2(total[t - start])) * LN_2;
        }
    }
};

// --- backward --------------------------------------------------------------------------------------------------------

template <class T>
struct Backward {
    Sizes s;
    Buffer buffer;
    float *q, *k, *dO, *k_panels, *v_panels, *dq, *dk, *dv, *p, *ds, *lse, *delta;

    explicit Backward(const Sizes& s) : s(s), buffer(8 * s.padded * s.stride + 2 * ROWS * SCORES + 2 * s.padded + 256) {
        const long n = s.padded * s.stride;
        q = buffer.take(n), k = buffer.take(n), dO = buffer.take(n);
        k_panels = buffer.take(s.padded * s.E), v_panels = buffer.take(s.padded * s.E);
        dq = buffer.take(n), dk = buffer.take(n), dv = buffer.take(n);
        p = buffer.take(ROWS * SCORES), ds = buffer.take(ROWS * SCORES);
        lse = buffer.take(s.padded), delta = buffer.take(s.padded);
    }

    void load_keys(View<T> k_, View<T> v, long b, long h, Rotary rotary) {
        load_rows(k, v, b, h, s, {});
        pack_panels(v_panels, k, s);
        load_rows(k, k_, b, h, s, rotary);
        pack_panels(k_panels, k, s);
        std::fill_n(dk, s.padded * s.stride, 0.f);
        std::fill_n(dv, s.padded * s.stride, 0.f);
    }

    void load_queries(View<T> q_, View<T> o, View<T> dO_, const float* lse_, long b, long h, Rotary rotary) {
        load_rows(q, q_, b, h, s, rotary);
        load_rows(dO, dO_, b, h, s, {});
        std::fill_n(dq, s.padded * s.stride, 0.f);
        for (long t = 0; t < s.padded; t++) {
            Floats product{};
            if (t < s.T) convert(o.row(b, h, t), dq, s.E);  // dq: not yet in use
            for (long e = 0; e < s.columns; e += LANES) product += ::load(dO + t * s.stride + e) * ::load(dq + e);
            delta[t] = sum(product);
            lse[t] = t < s.T ? lse_[t] * LOG2_E : 0;
        }
        std::fill_n(dq, s.columns, 0.f);
    }

    // What rows [start, end) and keys [first, last) add to dq, dk and dv.
    void add(long start, long end, long first, long last) {
        for (long panel = first; panel < last; panel += WIDTH)
            for (long row = std::max(start, panel / HEIGHT * HEIGHT); row < end; row += HEIGHT)
                score(row, panel, (row - start) * SCORES + panel - first);
        for (long row = start; row < end; row += HEIGHT) {
            const long keys = std::min(last, row + HEIGHT) - first;
            if (keys > 0)
                add_columns(s.columns, dq + row * s.stride, s.stride, false, ds + (row - start) * SCORES, SCORES, 1,
                            k + first * s.stride, keys);
        }
        for (long key = first; key < std::min(last, end); key += HEIGHT) {
            const long row = std::max(start, key / HEIGHT * HEIGHT), at = (row - start) * SCORES + key - first;
            add_columns(s.columns, dv + key * s.stride, s.stride, false, p + at, 1, SCORES, dO + row * s.stride,
                        end - row);
            add_columns(s.columns, dk + key * s.stride, s.stride, false, ds + at, 1, SCORES, q + row * s.stride,
                        end - row);
        }
    }

    // p and ds of HEIGHT rows with a panel of keys.
    void score(long row, long panel, long at) {
        const float factor = s.scale * LOG2_E;
        auto tile = scores_of(q + row * s.stride, k_panels + panel * s.E, s);
#pragma GCC unroll 12
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) tile.sums[i][j] = exp2(tile.sums[i][j] * factor - lse[row + i]);
        mask(tile, row, panel, 0);
        tile.store(p + at, SCORES);
        tile = scores_of(dO + row * s.stride, v_panels + panel * s.E, s);
#pragma GCC unroll 12
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++)
                tile.sums[i][j] = (tile.sums[i][j] - delta[row + i]) * s.scale * ::load(p + at + i * SCORES + j * LANES);
        tile.store(ds + at, SCORES);
    }
};

// tensors: q, k, v, o. shape: number of spans, T, H, K, E. lse: (B, H, T). Positions are counted within a span.
template <class T>
void forward(const int64_t* tensors, float* lse, Rotary rotary, const int64_t* shape, const int64_t* strides,
             const Span* spans) {
    const Sizes s = sizes(shape);
    const auto q = view<T>(tensors, strides, 0), k = view<T>(tensors, strides, 1), v = view<T>(tensors, strides, 2);
    const auto o = view<T>(tensors, strides, 3);
#pragma omp parallel if (s.spans * s.H * s.T * s.T * s.E > ALONE)
    {
        Forward<T> head(s);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < s.spans * s.H; i++) {
            const auto [b, first, tokens] = spans[i / s.H];
            const long h = i % s.H;
            head.s = sizes(s, spans[i / s.H]);
            head.load(q.from(first), k.from(first), v.from(first), b, h, rotary);
            for (long start = 0; start < tokens; start += ROWS) {
                const long end = std::min(start + ROWS, round_up(tokens, HEIGHT));
                head.attend(start, end);
                head.store(o.from(first), lse + (b * s.H + h) * s.T + first, b, h, start, end);
            }
        }
    }
}

// tensors: q, k, v, o, do, and dq, dk, dv, which are written.
template <class T>
void backward(const int64_t* tensors, const float* lse, Rotary rotary, const int64_t* shape, const int64_t* strides,
              const Span* spans) {
    const Sizes s = sizes(shape);
    const auto q = view<T>(tensors, strides, 0), k = view<T>(tensors, strides, 1), v = view<T>(tensors, strides, 2);
    const auto o = view<T>(tensors, strides, 3), dO = view<T>(tensors, strides, 4);
    const auto dq = view<T>(tensors, strides, 5), dk = view<T>(tensors, strides, 6), dv = view<T>(tensors, strides, 7);
#pragma omp parallel if (s.spans * s.H * s.T * s.T * s.E > ALONE)
    {
        Backward<T> head(s);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < s.spans * s.K; i++) {
            const auto [b, token, tokens] = spans[i / s.K];
            const long kv = i % s.K, group = s.H / s.K;
            head.s = sizes(s, spans[i / s.K]);
            head.load_keys(k.from(token), v.from(token), b, kv, rotary);
            for (long h = kv * group; h < (kv + 1) * group; h++) {
                head.load_queries(q.from(token), o.from(token), dO.from(token), lse + (b * s.H + h) * s.T + token, b, h,
                                  rotary);
                const long rows = round_up(tokens, HEIGHT);
                for (long first = 0; first < rows; first += KEYS)
                    for (long start = first / ROWS * ROWS; start < rows; start += ROWS) {
                        const long end = std::min(start + ROWS, rows);
                        head.add(start, end, first, std::min(first + KEYS, end));
                    }
                store_rows(dq.from(token), b, h, head.dq, head.s, rotary);
            }
            store_rows(dk.from(token), b, kv, head.dk, head.s, rotary);
            store_rows(dv.from(token), b, kv, head.dv, head.s, {});
        }
    }
}

}  // namespace

#define PUNA_ATTENTION(suffix, T)                                                                                    \
    extern "C" void attention_forward_##suffix(const int64_t* tensors, float* lse, const float* cos,                 \
                                               const float* sin, const int64_t* shape, const int64_t* strides,       \
                                               const int64_t* spans) {                                               \
        forward<T>(tensors, lse, {cos, sin}, shape, strides, reinterpret_cast<const Span*>(spans));                  \
    }                                                                                                                \
    extern "C" void attention_backward_##suffix(const int64_t* tensors, const float* lse, const float* cos,          \
                                                const float* sin, const int64_t* shape, const int64_t* strides,      \
                                                const int64_t* spans) {                                              \
        backward<T>(tensors, lse, {cos, sin}, shape, strides, reinterpret_cast<const Span*>(spans));                 \
    }
PUNA_ATTENTION(fp32, float)
PUNA_ATTENTION(bf16, bf16)
