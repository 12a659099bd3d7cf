// Vectors of fp32 as wide as the processor's registers, in the compiler's own notation (GCC's and Clang's vector
// extensions), so that one source serves AVX2, AVX-512 and NEON. Arithmetic is fp32; bf16 is widened when it is loaded and
// rounded once, when it is stored.
#pragma once

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

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

INLINE Floats widen(Halves x) { return (Floats)(__builtin_convertvector(x, Bits) << 16); }

// To nearest, ties to even; NaN stays NaN.
INLINE Halves to_bf16(Floats x) {
    const Bits bits = (Bits)x, nan = (Bits)(x != x);
    const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((nearest & ~nan) | (0x7fc0 & nan), Halves);
}

// The same for one number.
INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    return load<float>(&bits);
}
INLINE float rounded_to_bf16(float x) {
    uint32_t bits = load<uint32_t>(&x);
    bits = x != x ? 0x7fc00000 : (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    return load<float>(&bits);
}
INLINE void narrow(float* to, float x) { *to = x; }
INLINE void narrow(bf16* to, float x) {
    x = rounded_to_bf16(x);
    to->bits = uint16_t(load<uint32_t>(&x) >> 16);
}

// e^x to 2e-7, relative: 2^n times a polynomial of the rest, |rest| <= ln 2 / 2. Clamped to e^-87 and e^88.
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

// 2^x to 2 ulp of fp32; 0 below -126. NaN stays NaN.
INLINE Floats exp2(Floats x) {
    x = x < -127.f ? all(-127.f) : x;
    const Floats shifted = x + 12582912.f;  // 1.5 * 2^23: what is left of the mantissa is the nearest integer
    const Floats f = x - (shifted - 12582912.f);  // exact, in [-1/2, 1/2]
    Floats y = all(1.3264727e-3f);  // the polynomial nearest to 2^f, 1e-7 away at most
    y = y * f + 9.6715128e-3f;
    y = y * f + 5.55073374e-2f;
    y = y * f + 2.40222421e-1f;
    y = y * f + 6.93146978e-1f;
    y = y * f + 1.f;
    const Bits exponent = ((Bits)shifted + 127) << 23;  // 2^n, 0 for n = -127
    return y * (Floats)exponent;
}

}  // namespace
