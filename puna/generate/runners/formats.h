// The formats that weights are packed in (packed.py writes them), and how each is multiplied.
//
//   matrix = panels of 32 outputs; panel = groups of 32 columns; group = steps of 128 bytes
//   step   = for each of 32 outputs 4 bytes, along the columns: 1 fp32, 2 bf16, 4 int8 or, in two steps, 8 int4
//   int8     a group begins with the outputs' scales, bf16:                 w = scale (q - 128)
//   int4     a panel begins with the outputs' steps, fp32, and a group with
//            a byte of scale and one of zero, in sixteenths, for each:      w = step scale (q - zero / 16)
//
// A vector of a step holds LANES outputs and is multiplied with 4 broadcast bytes of one row of x, so nothing is
// summed across a vector. A format defines:
//
//   STEPS, UNITS   steps per group, and units of 4 bytes of x per step
//   HEAD, BYTES    bytes before the groups of a panel, and bytes per group
//   ROWS, TILE     rows of x per block, and accumulators per tile: as many as the registers hold
//   part, dot      the operand that is multiplied with a unit of x, and the multiplication
//   pack, unpack   a group of x from fp32, and one output's 4 bytes to fp32
#pragma once

#include "lanes.h"

constexpr long GROUP = 32;  // columns that share a scale
constexpr long PANEL = 32;  // outputs
constexpr int VECTORS = PANEL / LANES;

struct Real {
    static constexpr int HEAD = 0, ROWS = REGISTERS == 16 ? 6 : 12, TILE = 2 * ROWS;
    static constexpr bool INTEGER = false;
    typedef Floats Weights;
    static INLINE Floats dot(Floats sum, Floats w, uint32_t x) {
        float value;
        std::memcpy(&value, &x, 4);
        return sum + w * value;
    }
    static INLINE void pack(const Floats* x, uint32_t* out, float&, float&) { std::memcpy(out, x, 4 * GROUP); }
};

struct Fp32 : Real {
    static constexpr int STEPS = 32, UNITS = 1, BYTES = 4096;
    static INLINE Floats part(const char* w, int) { return load<Floats>(w); }
    static INLINE void unpack(uint32_t unit, float, float* out) { std::memcpy(out, &unit, 4); }
};

struct Bf16 : Real {
    static constexpr int STEPS = 16, BYTES = 2048;
#if defined(__AVX512BF16__)
    static constexpr int UNITS = 1;
    typedef Bits Weights;
    static INLINE Bits part(const char* w, int) { return load<Bits>(w); }
    static INLINE Floats dot(Floats sum, Bits w, uint32_t x) {
        return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
    }
    static INLINE void pack(const Floats* x, uint32_t* out, float&, float&) {
        store(out, to_bf16(x[0]));
        store(out + 8, to_bf16(x[1]));
    }
#else  // without a dot product of bf16, x stays fp32
    static constexpr int UNITS = 2;
    static INLINE Floats part(const char* w, int unit) {
        const Bits pair = load<Bits>(w);
        return (Floats)(unit ? pair & 0xffff0000u : pair << 16);
    }
#endif
    static INLINE void unpack(uint32_t unit, float, float* out) {
        const uint32_t low = unit << 16, high = unit & 0xffff0000u;
        std::memcpy(out, &low, 4);
        std::memcpy(out + 1, &high, 4);
    }
};

// x is rounded to 8 bits per group of 32 columns, so that the sums within a group are exact integers.
// OFFSET: the processor's dot product takes unsigned bytes for one operand, so the weights keep their 128, and
// 128 times the sum of x is subtracted from the result.
struct Integer {
    static constexpr int STEPS = 8, UNITS = 1, ROWS = 6, TILE = 2 * ROWS;
    static constexpr bool INTEGER = true;
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)
#define PAIRS_OF_BYTES
    static constexpr bool OFFSET = false;
    // Keeps the additions in order. GCC would reassociate them, and spill every product until the end.
    static INLINE __m256i in_order(__m256i sum) {
        asm("" : "+x"(sum));
        return sum;
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    static constexpr bool OFFSET = false;
#else
    static constexpr bool OFFSET = true;
#endif
    static INLINE void pack(const Floats* x, uint32_t* out, float& scale, float& sum_x) {
        Floats size = {};
        UNROLL for (int v = 0; v < VECTORS; v++) size = larger(size, x[v] < 0 ? -x[v] : x[v]);
        const float most = largest(size);
        const float inverse = most > 0 ? 127 / most : 0;
        const Floats rounder = all(12582912.f);
        scale = most / 127;
        Ints sum = {};
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const Ints q = (Ints)(x[v] * inverse + rounder) - (Ints)rounder;
            sum += q;
            store((char*)out + LANES * v, narrow(q));
        }
        sum_x = total(__builtin_convertvector(sum, Floats));  // exact
    }
#if !defined(PAIRS_OF_BYTES)
    typedef Bits Weights;
    typedef Ints Dots;
    static INLINE Ints finished(Ints dots) { return dots; }
    static INLINE Ints dot(Ints sum, Bits w, uint32_t x) {
#if defined(__AVX512VNNI__)
        return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32((int)x));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
        return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, _mm256_set1_epi32((int)x));
#elif defined(__ARM_FEATURE_DOTPROD)
        return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, vreinterpretq_s8_u32(vdupq_n_u32(x)));
#else
        for (int i = 0; i < 4; i++) sum += (Ints)((w >> 8 * i) & 255) * (int32_t)(int8_t)(x >> 8 * i);
        return sum;
#endif
    }
#endif
};

struct Int8 : Integer {
    static constexpr int HEAD = 0, BYTES = 64 + 1024;
    static constexpr int PAIRED = 1;              // steps in 128 bytes
    static constexpr float ZERO = OFFSET ? 128 : 0;  // what a row's sums are multiplied by beforehand
#if defined(PAIRS_OF_BYTES)
    // vpmaddubsw saturates at 16 bits; pairs of |w| times sign(w) x are at most 2 * 127 * 127 < 2^15.
    struct Weights {
        __m256i value, size;
    };
    typedef __m256i Dots;
    static INLINE Weights part(const char* w, int) {
        const __m256i value = _mm256_xor_si256(load<__m256i>(w), _mm256_set1_epi8(-128));
        return {value, _mm256_abs_epi8(value)};
    }
    static INLINE __m256i dot(__m256i sum, Weights w, uint32_t x) {
        const __m256i signed_x = _mm256_sign_epi8(_mm256_set1_epi32((int)x), w.value);
        const __m256i pairs = _mm256_maddubs_epi16(w.size, signed_x);
        return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    }
    static INLINE Ints finished(__m256i dots) { return (Ints)dots; }
#else
    static INLINE Bits part(const char* w, int) { return load<Bits>(w) ^ (OFFSET ? 0 : 0x80808080u); }
#endif
    struct Scale {
        Floats scale;
        explicit Scale(const char* group, int v) : scale(widen(load<Halves>(group + 2 * LANES * v))) {}
        static INLINE Floats centred(Floats dot, float sum_x) { return OFFSET ? dot - sum_x : dot; }
    };
    static INLINE void unpack(uint32_t unit, float scale, float* out) {
        for (int i = 0; i < 4; i++) out[i] = scale * ((int)(unit >> 8 * i & 255) - 128);
    }
};

struct Int4 : Integer {
    static constexpr int HEAD = 128, BYTES = 64 + 512;
    static constexpr int PAIRED = 2;
    static constexpr float ZERO = 1 / 16.f;
#if defined(PAIRS_OF_BYTES)
    // A whole group is summed in 16 bits: 8 steps of at most 2 * 15 * 127 are less than 2^15.
    typedef __m256i Weights, Dots;
    static INLINE __m256i part(const char* w, int which) {
        const __m256i both = load<__m256i>(w);
        return _mm256_and_si256(which ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    }
    static INLINE __m256i dot(__m256i sum, __m256i w, uint32_t x) {
        return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, _mm256_set1_epi32((int)x))));
    }
    static INLINE Ints finished(__m256i dots) { return (Ints)_mm256_madd_epi16(dots, _mm256_set1_epi16(1)); }
#else
    static INLINE Bits part(const char* w, int which) { return (load<Bits>(w) >> 4 * which) & 0x0f0f0f0fu; }
#endif
    struct Scale {
        Floats scale, zero;
        explicit Scale(const char* group, int v)
            : scale(numbers(group + LANES * v)), zero(numbers(group + 32 + LANES * v)) {}
        static INLINE Floats numbers(const char* bytes) {
            return __builtin_convertvector(widen(load<UBytes>(bytes)), Floats);
        }
        Floats centred(Floats dot, float sum_x) const { return dot - zero * sum_x; }
    };
};
