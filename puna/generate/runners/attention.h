// Causal attention over a cache in blocks, a block at a time.
#pragma once

#include <cmath>

#include "model.h"
#include "lanes.h"

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
    constexpr long PAIR = 2 * LANES;
    alignas(64) float scores[M][BLOCK], sums[M][512];
    float most[M], mass[M] = {};
    long last = 0;
    for (int row = 0; row < M; row++) {
        std::memset(sums[row], 0, sizeof(float) * up(wide, PAIR));
        most[row] = NONE;
        last = positions[row] > last ? positions[row] : last;
    }
    for (long start = 0; start <= last; start += BLOCK) {
        const C* keys = cached<C>(model, table[start / BLOCK], layer, head);
        const C* values = keys + model.kv_heads * wide * BLOCK;
        const long count = last + 1 - start < BLOCK ? last + 1 - start : BLOCK;
        for (long t = 0; t < count; t += PAIR) {
            Floats sum[M][2] = {};
            for (long e = 0; e < E; e++) {
                const Floats k[2] = {load_cached(keys + e * BLOCK + t), load_cached(keys + e * BLOCK + t + LANES)};
                UNROLL for (int row = 0; row < M; row++)
                    UNROLL for (int half = 0; half < 2; half++) sum[row][half] += k[half] * q[row][e];
            }
            for (int row = 0; row < M; row++)
                for (int half = 0; half < 2; half++) store(scores[row] + t + LANES * half, sum[row][half]);
        }
        for (int row = 0; row < M; row++) {
            const long seen = positions[row] + 1 - start < BLOCK ? positions[row] + 1 - start : BLOCK;
            for (long t = seen < 0 ? 0 : seen; t < BLOCK; t++) scores[row][t] = NONE;
            Floats high = all(most[row]);
            for (long t = 0; t < BLOCK; t += LANES) {
                const Floats s = load<Floats>(scores[row] + t);
                high = larger(s, high);
            }
            const float top = largest(high), keep = exponential(all(most[row] - top))[0];
            Floats added = {};
            for (long t = 0; t < BLOCK; t += LANES) {
                const Floats s = load<Floats>(scores[row] + t);
                const Floats p = s > NONE ? exponential(s - top) : Floats{};
                store(scores[row] + t, p);
                added += p;
            }
            mass[row] = mass[row] * keep + total(added);
            most[row] = top;
            if (keep != 1)
                for (long e = 0; e < wide; e += LANES) store(sums[row] + e, load<Floats>(sums[row] + e) * keep);
        }
        for (long e = 0; e < wide; e += PAIR) {
            const long second = e + LANES < wide ? LANES : 0;
            Floats sum[M][2];
            UNROLL for (int row = 0; row < M; row++)
                UNROLL for (int half = 0; half < 2; half++) sum[row][half] = load<Floats>(sums[row] + e + LANES * half);
            for (long t = 0; t < count; t++) {
                const C* at = values + t * wide + e;
                const Floats v[2] = {load_cached(at), load_cached(at + second)};
                UNROLL for (int row = 0; row < M; row++)
                    UNROLL for (int half = 0; half < 2; half++) sum[row][half] += v[half] * scores[row][t];
            }
            UNROLL for (int row = 0; row < M; row++)
                UNROLL for (int half = 0; half < 2; half++) store(sums[row] + e + LANES * half, sum[row][half]);
        }
    }
    for (int row = 0; row < M; row++)
        for (long e = 0; e < E; e++) out[row][e] = sums[row][e] / mass[row];
}

constexpr int QUERIES = REGISTERS == 16 ? 6 : 8;  // attended to at once

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
    const Blocks blocks(count * G, QUERIES);
    for (long block = 0; block < blocks.count; block++) {
        const long start = blocks.start(block);
        const int queries = (int)(blocks.start(block + 1) - start);
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
