// What packed.py fills in, field for field.
#pragma once

#include <cstdint>

constexpr long BLOCK = 64;  // tokens per cache block

extern "C" {
struct Matrix {
    const char* data;
    long rows, groups;
};
struct Layer {
    const float *attention_norm, *ffn_norm;
    Matrix wqkv, wo, w13, w2;  // a panel of w13 is 16 gates and their 16 ups
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

static inline long up(long n, long to) { return (n + to - 1) / to * to; }

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
