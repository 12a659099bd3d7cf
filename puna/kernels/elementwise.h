// Sweeps along a row of any length, fp32 or bf16 in memory, for the kernels of elementwise.cpp.
#pragma once

#include "vectors.h"

namespace {

// How much of a vector is in memory: all of it, or the first `count` numbers at the end of a row.
struct Whole {
    static constexpr long count = LANES;
};
struct Part {
    long count;
};

template <class V, class Extent>
INLINE V read(const void* from, Extent extent) {
    V value{};  // zero beyond the end of a row
    std::memcpy(&value, from, sizeof(V) / LANES * extent.count);
    return value;
}

template <class Extent>
INLINE Floats load(const float* from, Extent extent) {
    return read<Floats>(from, extent);
}

template <class Extent>
INLINE Floats load(const bf16* from, Extent extent) {
    return widen(read<Halves>(from, extent));
}

template <class Extent>
INLINE void store(float* to, Floats x, Extent extent) {
    std::memcpy(to, &x, 4 * extent.count);
}

template <class Extent>
INLINE void store(bf16* to, Floats x, Extent extent) {
    const Halves rounded = to_bf16(x);
    std::memcpy(to, &rounded, 2 * extent.count);
}

// Calls f(i, extent, lane) along n numbers, a vector at a time. `lane` numbers four sums that do not wait for one
// another; the order of a sum depends on n alone.
template <class F>
INLINE void sweep(long n, F f) {
    long i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        f(i, Whole{}, 0);
        f(i + LANES, Whole{}, 1);
        f(i + 2 * LANES, Whole{}, 2);
        f(i + 3 * LANES, Whole{}, 3);
    }
    for (; i + LANES <= n; i += LANES) f(i, Whole{}, 0);
    if (i < n) f(i, Part{n - i}, 1);
}

struct Sums {
    Floats lanes[4] = {};
    INLINE Floats& operator[](int lane) { return lanes[lane]; }
    INLINE float total() const {
        const Floats sums = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += sums[i];
        return sum;
    }
};

INLINE float largest(Floats x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most || x[i] != x[i] ? x[i] : most;
    return most;
}

}  // namespace
