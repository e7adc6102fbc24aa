// The wrapper types in plain C++: what every other instruction set must agree with, and what runs where none does.
// F is 16 floats, I 16 int32, U 64 bytes of weights (16 groups of 4), M a mask of 16.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace rookery::ROOKERY_ISA {

constexpr int REGISTERS = 4;  // that hold an F or an I

struct F {
    float v[16];
};
struct I {
    std::int32_t v[16];
};
struct U {
    std::uint8_t v[64];
};
struct M {
    std::uint32_t v[16];
};

// Loops that the compiler unrolls into what registers there are.
#define ROOKERY_LANES(type, expression)    \
    type out;                              \
    for (int i = 0; i < 16; ++i) {         \
        out.v[i] = (expression);           \
    }                                      \
    return out

static inline std::uint32_t bits_of(float x) {
    std::uint32_t b;
    std::memcpy(&b, &x, 4);
    return b;
}
static inline float from_bits(std::uint32_t b) {
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}

static inline F set(float x) { ROOKERY_LANES(F, x); }
static inline F zero() { return set(0.0f); }
static inline F load(const float* p) { ROOKERY_LANES(F, p[i]); }
static inline F load(const float* p, int n) { ROOKERY_LANES(F, i < n ? p[i] : 0.0f); }
static inline void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
static inline void store(float* p, F a, int n) {
    for (int i = 0; i < 16 && i < n; ++i) p[i] = a.v[i];
}

static inline F operator+(F a, F b) { ROOKERY_LANES(F, a.v[i] + b.v[i]); }
static inline F operator-(F a, F b) { ROOKERY_LANES(F, a.v[i] - b.v[i]); }
static inline F operator*(F a, F b) { ROOKERY_LANES(F, a.v[i] * b.v[i]); }
static inline F operator/(F a, F b) { ROOKERY_LANES(F, a.v[i] / b.v[i]); }
static inline F operator-(F a) { ROOKERY_LANES(F, -a.v[i]); }
// a * b + c; fused where the processor can.
static inline F fma(F a, F b, F c) { ROOKERY_LANES(F, a.v[i] * b.v[i] + c.v[i]); }
// Where a lane of b is NaN the result is NaN.
static inline F max(F a, F b) { ROOKERY_LANES(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline F min(F a, F b) { ROOKERY_LANES(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline F sqrt(F a) { ROOKERY_LANES(F, std::sqrt(a.v[i])); }
static inline F abs(F a) { ROOKERY_LANES(F, from_bits(bits_of(a.v[i]) & 0x7fffffffu)); }
// |magnitude| with the sign of `sign`.
static inline F copysign(F magnitude, F sign) {
    ROOKERY_LANES(F, from_bits((bits_of(magnitude.v[i]) & 0x7fffffffu) | (bits_of(sign.v[i]) & 0x80000000u)));
}
static inline M less(F a, F b) { ROOKERY_LANES(M, a.v[i] < b.v[i] ? ~0u : 0u); }
// a where m, else b.
static inline F select(M m, F a, F b) {
    ROOKERY_LANES(F, from_bits((bits_of(a.v[i]) & m.v[i]) | (bits_of(b.v[i]) & ~m.v[i])));
}

// Across lanes, in one fixed tree: i + (i + 8), then 4, 2, 1 apart.
static inline float sum(F a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
}
static inline float maximum(F a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
// The sum of each of 16 vectors; rows and columns of 16 by 16 exchanged.
static inline F sums(const F x[16]) { ROOKERY_LANES(F, sum(x[i])); }
static inline void transpose(F x[16]) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < i; ++j) {
            const float kept = x[i].v[j];
            x[i].v[j] = x[j].v[i];
            x[j].v[i] = kept;
        }
}

// To the nearest whole number, ties to even; as int for |a| < 2^22.
constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: added, it leaves the whole part in the last bits
static inline F round(F a) {
    ROOKERY_LANES(F, from_bits(bits_of(a.v[i]) & 0x7fffffffu) < 4194304.0f ? (a.v[i] + ROUNDER) - ROUNDER : a.v[i]);
}
static inline I to_int(F a) {
    ROOKERY_LANES(I, static_cast<std::int32_t>(bits_of(a.v[i] + ROUNDER) - bits_of(ROUNDER)));
}
static inline F to_float(I a) { ROOKERY_LANES(F, static_cast<float>(a.v[i])); }

static inline F power_of_two(I n) { ROOKERY_LANES(F, from_bits(static_cast<std::uint32_t>(n.v[i] + 127) << 23)); }
// a * 2^n for whole n in [-252, 254]: by two factors, so that neither over- nor underflows alone.
static inline F scale(F a, F n) {
    const I whole = to_int(n);
    I one, two;
    for (int i = 0; i < 16; ++i) {
        one.v[i] = whole.v[i] / 2;
        two.v[i] = whole.v[i] - one.v[i];
    }
    return a * power_of_two(one) * power_of_two(two);
}

static inline float half(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
    const std::uint32_t rest = static_cast<std::uint32_t>(h & 0x7fffu) << 13;
    const std::uint32_t finite = bits_of(from_bits(rest) * 5.192296858534828e33f);  // 2^112: the difference of biases
    return from_bits(((h & 0x7c00u) == 0x7c00u ? rest | 0x7f800000u : finite) | sign);
}
static inline F load_f16(const std::uint16_t* p) { ROOKERY_LANES(F, half(p[i])); }
// To the nearest bf16, ties to even; NaN stays NaN. (AVX-512 makes zeros of denormals.)
static inline void store_bf16(std::uint16_t* p, F a) {
    for (int i = 0; i < 16; ++i) {
        const std::uint32_t b = bits_of(a.v[i]);
        const std::uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
        p[i] = static_cast<std::uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? (b >> 16) | 0x40u : rounded);
    }
}

static inline I iset(int x) { ROOKERY_LANES(I, x); }
static inline I izero() { return iset(0); }
static inline I operator-(I a, I b) { ROOKERY_LANES(I, a.v[i] - b.v[i]); }
// The low byte of each lane.
static inline void store_i8(std::int8_t* p, I a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(a.v[i] & 0xff);
}

static inline U load_u(const void* p) {
    U out;
    std::memcpy(out.v, p, 64);
    return out;
}
static inline void store_u(void* p, U w) { std::memcpy(p, w.v, 64); }
static inline U operator^(U a, U b) {
    for (int i = 0; i < 64; ++i) a.v[i] = a.v[i] ^ b.v[i];
    return a;
}
static inline U low_nibbles(U w) {
    for (int i = 0; i < 64; ++i) w.v[i] = w.v[i] & 15;
    return w;
}
static inline U high_nibbles(U w) {
    for (int i = 0; i < 64; ++i) w.v[i] = static_cast<std::uint8_t>(w.v[i] >> 4);
    return w;
}
// acc[lane] += the four unsigned bytes of w's lane times the four signed bytes at x4. Exact.
static inline I dot(I acc, U w, const std::int8_t* x4) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) acc.v[i] += w.v[4 * i + j] * x4[j];
    return acc;
}
// acc[lane] += (w - 128) * x likewise; CENTRED where that is faster than to add up 128 * x and take it away.
constexpr bool CENTRED = false;
static inline I dot_centred(I acc, U w, const std::int8_t* x4) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) acc.v[i] += (w.v[4 * i + j] - 128) * x4[j];
    return acc;
}
// The same as `dot` where no byte of w is above 127, which some sets do faster.
static inline I dot_small(I acc, U w, const std::int8_t* x4) { return dot(acc, w, x4); }

// The first and the second of the bf16 pair in each lane.
static inline float bf16(std::uint8_t low, std::uint8_t high) {
    return from_bits(static_cast<std::uint32_t>(low | high << 8) << 16);
}
static inline F first_bf16(U w) { ROOKERY_LANES(F, bf16(w.v[4 * i], w.v[4 * i + 1])); }
static inline F second_bf16(U w) { ROOKERY_LANES(F, bf16(w.v[4 * i + 2], w.v[4 * i + 3])); }
// acc[lane] += the pair of w's lane times the pair at x2.
static inline F dot_bf16(F acc, U w, const std::uint16_t* x2) {
    const F first = set(from_bits(static_cast<std::uint32_t>(x2[0]) << 16));
    const F second = set(from_bits(static_cast<std::uint32_t>(x2[1]) << 16));
    return fma(second_bf16(w), second, fma(first_bf16(w), first, acc));
}

// Into the second cache: lines on their way into the first would hold up the loads that follow.
static inline void prefetch(const void*) {}

#undef ROOKERY_LANES

}  // namespace rookery::ROOKERY_ISA
