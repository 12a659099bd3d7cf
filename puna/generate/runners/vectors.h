// Vectors as wide as this processor's registers, in the compiler's own notation, and what is computed with them.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 32;  // NEON
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t UBytes __attribute__((vector_size(LANES)));

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

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

// In two steps: compilers find the instructions for each, but not for both at once.
INLINE Ints widen(UBytes bytes) {
    return __builtin_convertvector(__builtin_convertvector(bytes, Halves), Ints);
}
INLINE Bytes narrow(Ints x) { return __builtin_convertvector(__builtin_convertvector(x, Halves), Bytes); }

INLINE Halves to_bf16(Floats x) {  // to nearest, ties to even
    Bits bits = (Bits)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

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

// e^x to 2e-7: 2^n times a polynomial of the remainder, |remainder| <= ln 2 / 2. Clamped to e^-87 and e^88.
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
