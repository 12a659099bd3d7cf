// What both attention kernels are called with: tensors as views, sequences as spans, rotary angles.
#pragma once

#include <cmath>
#include <cstdint>

namespace {

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

// A tensor of (batch, head, token, E) with any strides but the last, which is 1.
template <class T>
struct View {
    T* data;
    long batch, head, token;
    T* row(long b, long h, long t) const { return data + b * batch + h * head + t * token; }
    View from(long t) const { return {row(0, 0, t), batch, head, token}; }
};

// The `i`th tensor of a call: its address, and three strides (batch, head, token) in elements.
template <class T>
View<T> view(const int64_t* pointers, const int64_t* strides, int i) {
    return {reinterpret_cast<T*>(pointers[i]), strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
}

// A sequence: `tokens` neighbours in a row of the batch. Tokens see those before them in their own span.
struct Span {
    int64_t row, start, tokens;
};

// cos and sin of (T, E/2), or null: the pairs (x[i], x[i + E/2]) are turned by the token's angles.
struct Rotary {
    const float *cos, *sin;
};

}  // namespace
