// Vectors as wide as the processor's registers, fp32 and bf16 in memory, for the kernels of elementwise.cpp.
//
// The vectors are the compiler's own, so that one source serves AVX2, AVX-512 and NEON. Arithmetic is fp32;
// bf16 is widened when it is loaded and rounded once when it is stored.

#pragma once

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr long WIDTH = 16;
#elif defined(__AVX__)
constexpr long WIDTH = 8;
#else
constexpr long WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

struct bf16 {
    uint16_t bits;
};

// How much of a vector is in memory: all of it, or the first `count` numbers at the end of a row.
struct Whole {
    static constexpr long count = WIDTH;
};
struct Part {
    long count;
};

INLINE Floats all(float x) { return x - Floats{}; }  // x - 0 is x, -0 included

template <class V, class Extent>
INLINE V read(const void* from, Extent extent) {
    V value{};  // zero beyond the end of a row
    std::memcpy(&value, from, sizeof(V) / WIDTH * extent.count);
    return value;
}

template <class Extent>
INLINE Floats load(const float* from, Extent extent) {
    return read<Floats>(from, extent);
}

template <class Extent>
INLINE Floats load(const bf16* from, Extent extent) {
    return (Floats)(__builtin_convertvector(read<Halves>(from, extent), Bits) << 16);
}

template <class Extent>
INLINE void store(float* to, Floats x, Extent extent) {
    std::memcpy(to, &x, 4 * extent.count);
}

template <class Extent>
INLINE void store(bf16* to, Floats x, Extent extent) {
    const Bits bits = (Bits)x;
    const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // ties to even
    const Halves rounded = __builtin_convertvector(x == x ? nearest : (bits >> 16) | 0x40, Halves);  // NaN stays NaN
    std::memcpy(to, &rounded, 2 * extent.count);
}

// Calls f(i, extent, lane) along n numbers, a vector at a time. `lane` numbers four sums that do not wait for one
// another; the order of a sum depends on n alone.
template <class F>
INLINE void sweep(long n, F f) {
    long i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
        f(i, Whole{}, 0);
        f(i + WIDTH, Whole{}, 1);
        f(i + 2 * WIDTH, Whole{}, 2);
        f(i + 3 * WIDTH, Whole{}, 3);
    }
    for (; i + WIDTH <= n; i += WIDTH) f(i, Whole{}, 0);
    if (i < n) f(i, Part{n - i}, 1);
}

struct Sums {
    Floats lanes[4] = {};
    INLINE Floats& operator[](int lane) { return lanes[lane]; }
    INLINE float total() const {
        const Floats sums = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
        float sum = 0;
        for (int i = 0; i < WIDTH; i++) sum += sums[i];
        return sum;
    }
};

INLINE float largest(Floats x) {
    float most = x[0];
    for (int i = 1; i < WIDTH; i++) most = x[i] > most || x[i] != x[i] ? x[i] : most;
    return most;
}

// e^x to 2e-7, relative: 2^n times a polynomial of the rest, |rest| <= ln 2 / 2. Below -87 it is e^-87.
INLINE Floats exponential(Floats x) {
    x = x < -87.f ? all(-87.f) : x > 88.f ? all(88.f) : x;
    const Floats rounder = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Floats shifted = x * 1.44269504f + rounder;
    const Floats n = shifted - rounder;
    const Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Floats p = r * 1.38888889e-3f + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    return (Floats)((Ints)p + (((Ints)shifted - (Ints)rounder) << 23));
}
