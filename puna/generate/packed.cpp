// A LLaMA's forward pass over any rows, prompts' and single tokens alike, in one call: what packed.py runs.
//
//   tokens -> rows of the embedding -> n_layers x [norm, qkv, rotate + cache, attention, wo + residual,
//                                                  norm, gate/up + SwiGLU, w2 + residual] -> norm -> head
//
// A product reads each weight once for all rows, in the order in which it lies in memory:
//
//   matrix = panels of 32 outputs; panel = groups of 32 columns; group = steps of 128 bytes
//   step   = for each of 32 outputs 4 bytes, along the columns: 1 fp32, 2 bf16, 4 int8 or, in two steps, 8 int4
//   int8     a group begins with the outputs' scales, bf16:                 w = scale (q - 128)
//   int4     a panel begins with the outputs' steps, fp32, and a group with
//            a byte of scale and one of zero, in sixteenths, for each:      w = step scale (q - zero / 16)
//
// so that a vector holds 16 outputs and one row's 4 bytes are broadcast against it. Nothing is summed across a
// vector, and a row's sums are taken in the same order whatever rows stand beside it: its bits depend on its
// own tokens alone. Integers: rows are quantised in groups of 32 too, products within a group are exact.
//
// Vectors are the compiler's own (64 bytes, on any processor); intrinsics stand only where a processor has a
// dot product of small numbers that the compiler would not find.

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t UBytes __attribute__((vector_size(16)));

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

constexpr long GROUP = 32;  // columns that share a scale
constexpr long PANEL = 32;  // outputs
constexpr long BLOCK = 64;  // tokens in a cache block

// ------------------------------------------------------------------------------------------- vectors

template <class T>
INLINE T load(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
INLINE void store(void* to, T value) {
    std::memcpy(to, &value, sizeof value);
}

INLINE Floats all(float x) { return x - Floats{}; }  // x - 0 is x, -0 included

INLINE Floats widen(Halves bf16) { return (Floats)(__builtin_convertvector(bf16, Bits) << 16); }

INLINE Halves to_bf16(Floats x) {  // to nearest, ties to even
    Bits bits = (Bits)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

INLINE float total(Floats x) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += x[i];
    return sum;
}

INLINE float largest(Floats x) {
    float most = x[0];
    for (int i = 1; i < 16; i++) most = x[i] > most ? x[i] : most;
    return most;
}

// e^x to 2e-7: 2^n times a polynomial of the rest, |rest| <= ln 2 / 2. Below e^-87 it stays there.
INLINE Floats exponential(Floats x) {
    x = x < -87.f ? all(-87.f) : x > 88.f ? all(88.f) : x;
    const Floats rounder = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    Floats shifted = x * 1.44269504f + rounder;
    Floats n = shifted - rounder;
    Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Floats p = r * 1.38888889e-3f + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    return (Floats)((Ints)p + (((Ints)shifted - (Ints)rounder) << 23));
}

// ------------------------------------------------------------------------- formats of the weights

// What a row is packed to before a product: in blocks of M rows, [group][step][M] of 4 bytes, and for integers
// [group][M] scales and sums (times the weights' zero).
struct Rows {
    uint32_t* values;
    float *scales, *sums;
};

struct Fp32 {
    static constexpr int STEPS = 32, ROWS = 12;      // steps a group, rows a block
    static constexpr int HEAD = 0, BYTES = 4096;     // bytes before the groups, bytes a group
    static constexpr bool INTEGER = false;
    INLINE Floats add(Floats sum, const char* w, uint32_t x) {
        float value;
        std::memcpy(&value, &x, 4);
        return sum + load<Floats>(w) * value;
    }
    INLINE void pack(const Floats x[2], uint32_t out[STEPS], float&, float&) { std::memcpy(out, x, 128); }
    INLINE void unpack(uint32_t unit, float, float* out) { std::memcpy(out, &unit, 4); }
};

struct Bf16 {
    static constexpr int STEPS = 16, ROWS = 12, HEAD = 0, BYTES = 2048;
    static constexpr bool INTEGER = false;
    INLINE Floats add(Floats sum, const char* w, uint32_t x) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(sum, (__m512bh)load<Bits>(w), (__m512bh)_mm512_set1_epi32((int)x));
#else
        const Bits pair = load<Bits>(w), row = x - Bits{};
        sum += (Floats)(pair << 16) * (Floats)(row << 16);
        return sum + (Floats)(pair & 0xffff0000u) * (Floats)(row & 0xffff0000u);
#endif
    }
    INLINE void pack(const Floats x[2], uint32_t out[STEPS], float&, float&) {
        store(out, to_bf16(x[0]));
        store(out + 8, to_bf16(x[1]));
    }
    INLINE void unpack(uint32_t unit, float, float* out) {
        const uint32_t low = unit << 16, high = unit & 0xffff0000u;
        std::memcpy(out, &low, 4);
        std::memcpy(out + 1, &high, 4);
    }
};

// Weights are stored above zero, as the processors' dot products of bytes want one side: sum q x has zero times
// sum x too much, which is what a row's `sum` takes away.
struct Integer {
    static constexpr int STEPS = 8, ROWS = 6;
    static constexpr bool INTEGER = true;
    INLINE Ints dot(Ints sum, Bits w, uint32_t x) {
#if defined(__AVX512VNNI__)
        return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32((int)x));
#else
        for (int i = 0; i < 4; i++) sum += (Ints)((w >> 8 * i) & 255) * (int32_t)(int8_t)(x >> 8 * i);
        return sum;
#endif
    }
    INLINE void pack(const Floats x[2], uint32_t out[STEPS], float& scale, float& sum_x) {
        Floats size = x[0] < 0 ? -x[0] : x[0], other = x[1] < 0 ? -x[1] : x[1];
        const float most = largest(size > other ? size : other);
        const float inverse = most > 0 ? 127 / most : 0;
        const Floats rounder = all(12582912.f);
        scale = most / 127;
        Ints sum = {};
        for (int half = 0; half < 2; half++) {
            const Ints q = (Ints)(x[half] * inverse + rounder) - (Ints)rounder;
            sum += q;
            store(out + 4 * half, __builtin_convertvector(q, Bytes));
        }
        sum_x = total(__builtin_convertvector(sum, Floats));  // exact
    }
};

struct Int8 : Integer {
    static constexpr int HEAD = 0, BYTES = 64 + 1024;
    static constexpr int PAIRED = 1;       // steps in a vector
    static constexpr float ZERO = 128;     // what a row's sums are multiplied by beforehand
    INLINE Bits part(Bits w, int) { return w; }
    struct Scale {
        Floats scale;
        explicit Scale(const char* group, int half) : scale(widen(load<Halves>(group + 32 * half))) {}
        INLINE Floats centred(Floats dot, float sum_x) { return dot - sum_x; }
    };
    INLINE void unpack(uint32_t unit, float scale, float* out) {
        for (int i = 0; i < 4; i++) out[i] = scale * ((int)(unit >> 8 * i & 255) - 128);
    }
};

struct Int4 : Integer {
    static constexpr int HEAD = 128, BYTES = 64 + 512;
    static constexpr int PAIRED = 2;
    static constexpr float ZERO = 1 / 16.f;
    INLINE Bits part(Bits w, int which) { return (w >> 4 * which) & 0x0f0f0f0fu; }
    struct Scale {
        Floats scale, zero;
        explicit Scale(const char* group, int half)
            : scale(numbers(group + 16 * half)), zero(numbers(group + 32 + 16 * half)) {}
        INLINE Floats numbers(const char* bytes) {
            return __builtin_convertvector(__builtin_convertvector(load<UBytes>(bytes), Ints), Floats);
        }
        Floats centred(Floats dot, float sum_x) const { return dot - zero * sum_x; }
    };
};

// ------------------------------------------------------------------------------------- the products

// sums[row][half] = one panel times M packed rows.
template <class W, int M>
static void panel(const char* w, const Rows& x, long groups, Floats (*sums)[2]) {
    Floats sum[M][2] = {};
    const char* const head = w;
    w += W::HEAD;
    for (long g = 0; g < groups; g++, w += W::BYTES) {
        const uint32_t* values = x.values + g * W::STEPS * M;
        if constexpr (!W::INTEGER) {
            for (int step = 0; step < W::STEPS; step++)
                UNROLL for (int row = 0; row < M; row++)
                    UNROLL for (int half = 0; half < 2; half++)
                        sum[row][half] =
                            W::add(sum[row][half], w + 128 * step + 64 * half, values[step * M + row]);
        } else {
            Ints dots[M][2] = {};
            UNROLL for (int step = 0; step < W::STEPS; step += W::PAIRED) {
                const char* at = w + 64 + 128 * (step / W::PAIRED);
                const Bits both[2] = {load<Bits>(at), load<Bits>(at + 64)};
                UNROLL for (int pair = 0; pair < W::PAIRED; pair++)
                    UNROLL for (int half = 0; half < 2; half++) {
                        const Bits weights = W::part(both[half], pair);
                        UNROLL for (int row = 0; row < M; row++)
                            dots[row][half] = W::dot(dots[row][half], weights, values[(step + pair) * M + row]);
                    }
            }
            UNROLL for (int half = 0; half < 2; half++) {
                const typename W::Scale of(w, half);
                UNROLL for (int row = 0; row < M; row++) {
                    const Floats dot = __builtin_convertvector(dots[row][half], Floats);
                    sum[row][half] += of.centred(dot, x.sums[g * M + row]) * x.scales[g * M + row] * of.scale;
                }
            }
        }
    }
    UNROLL for (int row = 0; row < M; row++)
        UNROLL for (int half = 0; half < 2; half++)
            sums[row][half] = W::HEAD ? sum[row][half] * load<Floats>(head + 64 * half) : sum[row][half];
}

template <class W, int M = W::ROWS>
INLINE void any_panel(int rows, const char* w, const Rows& x, long groups, Floats (*sums)[2]) {
    if (rows == M)
        panel<W, M>(w, x, groups, sums);
    else if constexpr (M > 1)
        any_panel<W, M - 1>(rows, w, x, groups, sums);
}

// ------------------------------------------------------- what packed.py fills in, field for field

extern "C" {
struct Matrix {
    const char* data;
    long rows, groups;
};
struct Layer {
    const float *attention_norm, *ffn_norm;
    Matrix wqkv, wo, w13, w2;  // of w13 a panel is 16 gates and their 16 ups
};
struct Model {
    long dim, n_layers, n_heads, kv_heads, head_dim, ffn_dim;
    float eps;
    int weights, cache_is_fp32;
    const Layer* layers;
    Matrix embedding, output;
    const float *norm, *cos, *sin;
    char* cache;  // [block][layer][keys (kv_heads, head_dim, BLOCK), values (kv_heads, BLOCK, head_dim)]
};
// Row i is token tokens[i] at position positions[i] of the sequence whose cache blocks are tables[sequences[i]].
struct Batch {
    long rows, wanted, table_length;
    const int32_t *tokens, *positions, *sequences, *tables;
    const int32_t* want;  // rows whose logits are wanted
    float* logits;        // (wanted, vocabulary)
};
}

static long up(long n, long to) { return (n + to - 1) / to * to; }

// Rows in blocks of at most `most`, as even as they come.
struct Blocks {
    long rows, count;
    Blocks(long rows, long most) : rows(rows), count((rows + most - 1) / most) {}
    long start(long block) const { return rows * block / count; }
    long of(long row) const {
        long block = row * count / rows;
        while (start(block + 1) <= row) block++;
        return block;
    }
};

// The threads of a step meet here. They spin, as the next phase is microseconds away; where a thread has lost
// its core they let others run.
struct Meeting {
    int threads;
    std::atomic<int> arrived{0}, round{0};
    explicit Meeting(int threads) : threads(threads) {}
    void wait() {
        const int now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (long spins = 0; round.load(std::memory_order_acquire) == now; spins++) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
            if (spins > 20000) sched_yield();
        }
    }
};

enum class Then { STORE, ADD, SWIGLU };

// out = rows x matrix, this thread's panels of it. SWIGLU: silu(gate) * up.
template <class W>
static void product(
    const Matrix& matrix, const Rows& x, const Blocks& blocks, Then then, float* out, long stride, int thread,
    int threads
) {
    const long panels = up(matrix.rows, PANEL) / PANEL;
    Floats sums[W::ROWS][2];
    for (long p = panels * thread / threads; p < panels * (thread + 1) / threads; p++) {
        const char* w = matrix.data + p * (W::HEAD + matrix.groups * W::BYTES);
        for (long block = 0; block < blocks.count; block++) {
            const long first = blocks.start(block), M = blocks.start(block + 1) - first;
            const Rows rows = {
                x.values + first * matrix.groups * W::STEPS,
                x.scales + first * matrix.groups,
                x.sums + first * matrix.groups,
            };
            any_panel<W>((int)M, w, rows, matrix.groups, sums);
            for (long row = 0; row < M; row++) {
                float* to = out + (first + row) * stride + p * (then == Then::SWIGLU ? PANEL / 2 : PANEL);
                if (then == Then::SWIGLU) {
                    const Floats gate = sums[row][0];
                    store(to, gate / (1.f + exponential(-gate)) * sums[row][1]);
                } else if (then == Then::ADD) {
                    store(to, load<Floats>(to) + sums[row][0]);
                    store(to + 16, load<Floats>(to + 16) + sums[row][1]);
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
    Floats factor = all(1);
    if (norm) {
        Floats squares = {};
        for (long i = 0; i < groups * GROUP; i += 16) squares += load<Floats>(x + i) * load<Floats>(x + i);
        factor = all(1 / std::sqrt(total(squares) / dim + eps));
    }
    const long block = blocks.of(row), first = blocks.start(block), M = blocks.start(block + 1) - first;
    for (long g = 0; g < groups; g++) {
        Floats values[2] = {load<Floats>(x + g * GROUP), load<Floats>(x + g * GROUP + 16)};
        if (norm)
            for (int half = 0; half < 2; half++)
                values[half] = values[half] * factor * load<Floats>(norm + g * GROUP + 16 * half);
        uint32_t units[W::STEPS];
        float scale = 0, sum = 0;
        W::pack(values, units, scale, sum);
        uint32_t* at = to.values + (first * groups + g * M) * W::STEPS + row - first;
        for (int step = 0; step < W::STEPS; step++) at[step * M] = units[step];
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

// ----------------------------------------------------------------------------------------- attention

INLINE Floats load_cached(const float* from) { return load<Floats>(from); }
INLINE Floats load_cached(const uint16_t* from) { return widen(load<Halves>(from)); }
INLINE void put(float* to, float x) { *to = x; }
INLINE void put(uint16_t* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Where a layer's keys of one head lie in a cache block; its values lie kv_heads * wide * BLOCK further.
template <class C>
INLINE C* cached(const Model& model, long block, long layer, long head) {
    const long of_head = up(model.head_dim, 16) * BLOCK;
    return (C*)model.cache + ((block * model.n_layers + layer) * 2 * model.kv_heads + head) * of_head;
}

// Turn q (and divide by the root of head_dim) and k of one row and one kv head in place; cache k and v.
template <class C>
static void rotate(const Model& model, const Batch& batch, long layer, long row, long head, float* qkv) {
    const long E = model.head_dim, H = model.n_heads, K = model.kv_heads, wide = up(E, 16), at = batch.positions[row];
    const float *cos = model.cos + at * (E / 2), *sin = model.sin + at * (E / 2);
    const auto turn = [&](float* x, float factor) {
        for (long i = 0; i < E / 2; i++) {
            const float low = x[i], high = x[i + E / 2];
            x[i] = (low * cos[i] - high * sin[i]) * factor;
            x[i + E / 2] = (high * cos[i] + low * sin[i]) * factor;
        }
    };
    const float factor = 1 / std::sqrt((float)E);
    for (long h = head * (H / K); h < (head + 1) * (H / K); h++) turn(qkv + h * E, factor);
    float *k = qkv + (H + head) * E, *v = qkv + (H + K + head) * E;
    turn(k, 1);
    const long block = batch.tables[batch.sequences[row] * batch.table_length + at / BLOCK];
    C* keys = cached<C>(model, block, layer, head) + at % BLOCK;
    C* values = cached<C>(model, block, layer, head) + K * wide * BLOCK + at % BLOCK * wide;
    for (long i = 0; i < E; i++) put(keys + i * BLOCK, k[i]), put(values + i, v[i]);
}

// M queries of one kv head and one sequence against their keys, a cache block at a time, softmax carried along
// (Milakov & Gimelshein 2018). A block behind a query's position changes none of its bits: exp gives 0.
template <class C, int M>
static void attend(
    const Model& model, long layer, long head, const int32_t* table, const long* positions, const float* const* q,
    float* const* out
) {
    constexpr float NONE = -1e30f;
    const long E = model.head_dim, wide = up(E, 16);
    alignas(64) float scores[M][BLOCK], sums[M][512];
    float most[M], mass[M] = {};
    long last = 0;
    for (int row = 0; row < M; row++) {
        std::memset(sums[row], 0, sizeof(float) * up(wide, 32));
        most[row] = NONE;
        last = positions[row] > last ? positions[row] : last;
    }
    for (long start = 0; start <= last; start += BLOCK) {
        const C* keys = cached<C>(model, table[start / BLOCK], layer, head);
        const C* values = keys + model.kv_heads * wide * BLOCK;
        const long count = last + 1 - start < BLOCK ? last + 1 - start : BLOCK;
        for (long t = 0; t < count; t += 32) {
            Floats sum[M][2] = {};
            for (long e = 0; e < E; e++) {
                const Floats k[2] = {load_cached(keys + e * BLOCK + t), load_cached(keys + e * BLOCK + t + 16)};
                UNROLL for (int row = 0; row < M; row++)
                    UNROLL for (int half = 0; half < 2; half++) sum[row][half] += k[half] * q[row][e];
            }
            for (int row = 0; row < M; row++)
                for (int half = 0; half < 2; half++) store(scores[row] + t + 16 * half, sum[row][half]);
        }
        for (int row = 0; row < M; row++) {
            const long seen = positions[row] + 1 - start < BLOCK ? positions[row] + 1 - start : BLOCK;
            for (long t = seen < 0 ? 0 : seen; t < BLOCK; t++) scores[row][t] = NONE;
            Floats high = all(most[row]);
            for (long t = 0; t < BLOCK; t += 16) {
                const Floats s = load<Floats>(scores[row] + t);
                high = s > high ? s : high;
            }
            const float top = largest(high), keep = exponential(all(most[row] - top))[0];
            Floats added = {};
            for (long t = 0; t < BLOCK; t += 16) {
                const Floats s = load<Floats>(scores[row] + t);
                const Floats p = s > NONE ? exponential(s - top) : Floats{};
                store(scores[row] + t, p);
                added += p;
            }
            mass[row] = mass[row] * keep + total(added);
            most[row] = top;
            if (keep != 1)
                for (long e = 0; e < wide; e += 16) store(sums[row] + e, load<Floats>(sums[row] + e) * keep);
        }
        for (long e = 0; e < wide; e += 32) {
            const long second = e + 16 < wide ? 16 : 0;
            Floats sum[M][2];
            UNROLL for (int row = 0; row < M; row++)
                UNROLL for (int half = 0; half < 2; half++) sum[row][half] = load<Floats>(sums[row] + e + 16 * half);
            for (long t = 0; t < count; t++) {
                const C* at = values + t * wide + e;
                const Floats v[2] = {load_cached(at), load_cached(at + second)};
                UNROLL for (int row = 0; row < M; row++)
                    UNROLL for (int half = 0; half < 2; half++) sum[row][half] += v[half] * scores[row][t];
            }
            UNROLL for (int row = 0; row < M; row++)
                UNROLL for (int half = 0; half < 2; half++) store(sums[row] + e + 16 * half, sum[row][half]);
        }
    }
    for (int row = 0; row < M; row++)
        for (long e = 0; e < E; e++) out[row][e] = sums[row][e] / mass[row];
}

constexpr int QUERIES = 8;  // attended to at once

template <class C, int M = QUERIES, class... Rest>
INLINE void attend_some(int queries, const Rest&... rest) {
    if (queries == M)
        attend<C, M>(rest...);
    else if constexpr (M > 1)
        attend_some<C, M - 1>(queries, rest...);
}

// Rows first … first + count of one sequence, all query heads of one kv head.
template <class C>
static void attend_rows(
    const Model& model, const Batch& batch, long layer, long first, long count, long head, const float* qkv,
    long qkv_stride, float* out, long out_stride
) {
    const long G = model.n_heads / model.kv_heads, E = model.head_dim;
    const int32_t* table = batch.tables + batch.sequences[first] * batch.table_length;
    for (long start = 0; start < count * G; start += QUERIES) {
        const int queries = (int)(count * G - start < QUERIES ? count * G - start : QUERIES);
        long positions[QUERIES];
        const float* q[QUERIES];
        float* o[QUERIES];
        for (int i = 0; i < queries; i++) {
            const long row = first + (start + i) / G, h = head * G + (start + i) % G;
            positions[i] = batch.positions[row];
            q[i] = qkv + row * qkv_stride + h * E;
            o[i] = out + row * out_stride + h * E;
        }
        attend_some<C>(queries, model, layer, head, table, positions, q, o);
    }
}

// ------------------------------------------------------------------------------------------ the step

// Memory that lives for one step.
struct Arena {
    std::vector<void*> taken;
    template <class T>
    T* take(long count) {
        taken.push_back(std::aligned_alloc(64, up(count * (long)sizeof(T) + 64, 64)));
        return (T*)taken.back();
    }
    Rows rows(long n, long groups) {
        return {take<uint32_t>(n * groups * GROUP), take<float>(n * groups), take<float>(n * groups)};
    }
    ~Arena() {
        for (void* p : taken) std::free(p);
    }
};

// Below this many rows every thread packs them all for itself, which is cheaper than meeting once more.
constexpr long FEW = 4;

template <class W, class H, class C>
static void step(const Model& model, const Batch& batch) {
    const long n = batch.rows, D = model.dim, E = model.head_dim, K = model.kv_heads;
    const long dim = up(D, GROUP), qkv_width = up((model.n_heads + 2 * K) * E, GROUP);
    const long heads_width = up(model.n_heads * E, GROUP), ffn = up(model.ffn_dim, GROUP);
    const long widest = (dim > ffn ? (dim > heads_width ? dim : heads_width) : ffn) / GROUP;
    const int threads = omp_get_max_threads();

    Arena arena;
    float *x = arena.take<float>(n * dim), *qkv = arena.take<float>(n * qkv_width);
    float *heads = arena.take<float>(n * heads_width), *hidden = arena.take<float>(n * ffn);
    std::memset(heads, 0, sizeof(float) * n * heads_width);
    std::memset(hidden, 0, sizeof(float) * n * ffn);
    const bool few = n < FEW;
    std::vector<Rows> packed;
    for (int i = 0; i < (few ? threads : 1); i++) packed.push_back(arena.rows(n, widest));
    Meeting meeting(threads);
    const Blocks blocks(n, W::ROWS), last_blocks(batch.wanted, H::ROWS);

    // What attention does at once: some consecutive rows of one sequence, one kv head.
    const long together = QUERIES / (model.n_heads / K) > 1 ? QUERIES / (model.n_heads / K) : 1;
    std::vector<long> starts;
    for (long row = 0; row < n; row++)
        if (starts.empty() || row - starts.back() == together || batch.sequences[row] != batch.sequences[row - 1])
            starts.push_back(row);
    starts.push_back(n);

#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        const Rows mine = packed[few ? thread : 0];
        const auto share = [&](long count, auto&& work) {
            for (long i = count * thread / threads; i < count * (thread + 1) / threads; i++) work(i);
        };
        const auto pack = [&](const float* from, long stride, const float* norm, long groups) {
            const auto one = [&](long row) {
                pack_row<W>(from + row * stride, norm, model.eps, D, groups, blocks, row, mine);
            };
            if (few) {
                for (long row = 0; row < n; row++) one(row);
            } else {
                share(n, one);
                meeting.wait();
            }
        };
        const auto multiply = [&](const Matrix& matrix, Then then, float* out, long stride) {
            product<W>(matrix, mine, blocks, then, out, stride, thread, threads);
            meeting.wait();
        };

        share(n, [&](long row) { unpack_row<H>(model.embedding, batch.tokens[row], x + row * dim); });
        meeting.wait();
        for (long layer = 0; layer < model.n_layers; layer++) {
            const Layer& weights = model.layers[layer];
            pack(x, dim, weights.attention_norm, dim / GROUP);
            multiply(weights.wqkv, Then::STORE, qkv, qkv_width);
            share(n * K, [&](long i) { rotate<C>(model, batch, layer, i / K, i % K, qkv + i / K * qkv_width); });
            meeting.wait();
            const long tasks = ((long)starts.size() - 1) * K;
            for (long i = thread; i < tasks; i += threads) {  // in turns: later rows have more keys
                const long first = starts[i / K], count = starts[i / K + 1] - first;
                attend_rows<C>(model, batch, layer, first, count, i % K, qkv, qkv_width, heads, heads_width);
            }
            meeting.wait();
            pack(heads, heads_width, nullptr, heads_width / GROUP);
            multiply(weights.wo, Then::ADD, x, dim);
            pack(x, dim, weights.ffn_norm, dim / GROUP);
            multiply(weights.w13, Then::SWIGLU, hidden, ffn);
            pack(hidden, ffn, nullptr, ffn / GROUP);
            multiply(weights.w2, Then::ADD, x, dim);
        }
        if (few || thread == 0)
            for (long i = 0; i < batch.wanted; i++)
                pack_row<H>(
                    x + batch.want[i] * dim, model.norm, model.eps, D, dim / GROUP, last_blocks, i, mine
                );
        meeting.wait();
        if (batch.wanted)
            product<H>(
                model.output, mine, last_blocks, Then::STORE, batch.logits, model.output.rows, thread, threads
            );
    }
}

template <class W, class H>
static void step(const Model& model, const Batch& batch) {
    model.cache_is_fp32 ? step<W, H, float>(model, batch) : step<W, H, uint16_t>(model, batch);
}

extern "C" void forward(const Model* model, const Batch* batch) {
    switch (model->weights) {
        case 0: return step<Fp32, Fp32>(*model, *batch);
        case 1: return step<Bf16, Bf16>(*model, *batch);
        case 2: return step<Int8, Int8>(*model, *batch);
        case 3: return step<Int4, Int8>(*model, *batch);  // a head of 4 bits would spoil the text
    }
}

// Read memory once, as a product reads its weights: the bandwidth that decoding is measured against.
extern "C" uint64_t read_all(const char* data, long bytes) {
    const int threads = omp_get_max_threads();
    uint64_t found = 0;
#pragma omp parallel num_threads(threads) reduction(^ : found)
    {
        const long lines = bytes / 64, thread = omp_get_thread_num();
        Bits some[4] = {};
        long i = lines * thread / threads;
        for (const long end = lines * (thread + 1) / threads; i + 4 <= end; i += 4)
            UNROLL for (int j = 0; j < 4; j++) some[j] ^= load<Bits>(data + 64 * (i + j));
        for (int j = 0; j < 16; j++) found ^= (some[0] ^ some[1] ^ some[2] ^ some[3])[j];
    }
    return found;
}
