// What generation computes with vectors, beside what kernels/vectors.h has.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include "vectors.h"

namespace {

typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t UBytes __attribute__((vector_size(LANES)));

// In two steps: compilers find the instructions for each, but not for both at once.
INLINE Ints widen(UBytes bytes) {
    return __builtin_convertvector(__builtin_convertvector(bytes, Halves), Ints);
}
INLINE Bytes narrow(Ints x) { return __builtin_convertvector(__builtin_convertvector(x, Halves), Bytes); }

INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

INLINE float total(Floats x) {
    float lane[LANES];
    store(lane, x);
    UNROLL for (int width = LANES / 2; width > 0; width /= 2)
        UNROLL for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

INLINE float largest(Floats x) {
    float lane[LANES];
    store(lane, x);
    UNROLL for (int width = LANES / 2; width > 0; width /= 2)
        UNROLL for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

}  // namespace
