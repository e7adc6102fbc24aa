// The wrapper types on AArch64 with the dot product: four registers each. Meanings: isa_generic.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace rookery::ROOKERY_ISA {

constexpr int REGISTERS = 8;

struct F {
    float32x4_t v[4];
};
struct I {
    int32x4_t v[4];
};
struct U {
    uint8x16_t v[4];
};
struct M {
    uint32x4_t v[4];
};

#define ROOKERY_QUARTERS(type, expression) \
    type out;                              \
    for (int i = 0; i < 4; ++i) {          \
        out.v[i] = (expression);           \
    }                                      \
    return out

static inline F set(float x) { ROOKERY_QUARTERS(F, vdupq_n_f32(x)); }
static inline F zero() { return set(0.0f); }
static inline F load(const float* p) { ROOKERY_QUARTERS(F, vld1q_f32(p + 4 * i)); }
// No masked loads: through a copy.
static inline F load(const float* p, int n) {
    float all[16] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return load(all);
}
static inline void store(float* p, F a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
static inline void store(float* p, F a, int n) {
    float all[16];
    store(all, a);
    for (int i = 0; i < n; ++i) p[i] = all[i];
}

static inline F operator+(F a, F b) { ROOKERY_QUARTERS(F, vaddq_f32(a.v[i], b.v[i])); }
static inline F operator-(F a, F b) { ROOKERY_QUARTERS(F, vsubq_f32(a.v[i], b.v[i])); }
static inline F operator*(F a, F b) { ROOKERY_QUARTERS(F, vmulq_f32(a.v[i], b.v[i])); }
static inline F operator/(F a, F b) { ROOKERY_QUARTERS(F, vdivq_f32(a.v[i], b.v[i])); }
static inline F operator-(F a) { ROOKERY_QUARTERS(F, vnegq_f32(a.v[i])); }
static inline F fma(F a, F b, F c) { ROOKERY_QUARTERS(F, vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
static inline F max(F a, F b) { ROOKERY_QUARTERS(F, vmaxq_f32(a.v[i], b.v[i])); }
static inline F min(F a, F b) { ROOKERY_QUARTERS(F, vminq_f32(a.v[i], b.v[i])); }
static inline F sqrt(F a) { ROOKERY_QUARTERS(F, vsqrtq_f32(a.v[i])); }
static inline F abs(F a) { ROOKERY_QUARTERS(F, vabsq_f32(a.v[i])); }
static inline F copysign(F magnitude, F sign) {
    ROOKERY_QUARTERS(F, vbslq_f32(vdupq_n_u32(0x80000000u), sign.v[i], magnitude.v[i]));
}
static inline M less(F a, F b) { ROOKERY_QUARTERS(M, vcltq_f32(a.v[i], b.v[i])); }
static inline F select(M m, F a, F b) { ROOKERY_QUARTERS(F, vbslq_f32(m.v[i], a.v[i], b.v[i])); }

static inline float sum(F a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
static inline float maximum(F a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
static inline float32x4_t pairs(F a) {
    return vpaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
}
static inline F sums(const F x[16]) {
    ROOKERY_QUARTERS(F, vpaddq_f32(vpaddq_f32(pairs(x[4 * i]), pairs(x[4 * i + 1])),
                                   vpaddq_f32(pairs(x[4 * i + 2]), pairs(x[4 * i + 3]))));
}
static inline void transpose(F x[16]) {
    float all[16][16];
    for (int i = 0; i < 16; ++i) store(all[i], x[i]);
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const float32x4x4_t block = {vld1q_f32(all[4 * i] + 4 * j), vld1q_f32(all[4 * i + 1] + 4 * j),
                                         vld1q_f32(all[4 * i + 2] + 4 * j), vld1q_f32(all[4 * i + 3] + 4 * j)};
            float out[16];
            vst4q_f32(out, block);
            for (int k = 0; k < 4; ++k) x[4 * j + k].v[i] = vld1q_f32(out + 4 * k);
        }
}

static inline F round(F a) { ROOKERY_QUARTERS(F, vrndnq_f32(a.v[i])); }
static inline I to_int(F a) { ROOKERY_QUARTERS(I, vcvtnq_s32_f32(a.v[i])); }
static inline F to_float(I a) { ROOKERY_QUARTERS(F, vcvtq_f32_s32(a.v[i])); }
static inline float32x4_t power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
static inline float32x4_t scale(float32x4_t a, float32x4_t n) {
    const int32x4_t whole = vcvtnq_s32_f32(n), one = vshrq_n_s32(whole, 1), two = vsubq_s32(whole, one);
    return vmulq_f32(vmulq_f32(a, power_of_two(one)), power_of_two(two));
}
static inline F scale(F a, F n) { ROOKERY_QUARTERS(F, scale(a.v[i], n.v[i])); }

static inline F load_f16(const std::uint16_t* p) {
    ROOKERY_QUARTERS(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
static inline void store_bf16(std::uint16_t* p, F a) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t b = vreinterpretq_u32_f32(a.v[i]), top = vshrq_n_u32(b, 16);
        const uint32x4_t up = vaddq_u32(vaddq_u32(b, vdupq_n_u32(0x7fff)), vandq_u32(top, vdupq_n_u32(1)));
        const uint32x4_t quiet = vorrq_u32(top, vdupq_n_u32(0x40));
        const uint32x4_t number = vceqq_f32(a.v[i], a.v[i]);
        vst1_u16(p + 4 * i, vmovn_u32(vbslq_u32(number, vshrq_n_u32(up, 16), quiet)));
    }
}

static inline I iset(int x) { ROOKERY_QUARTERS(I, vdupq_n_s32(x)); }
static inline I izero() { return iset(0); }
static inline I operator-(I a, I b) { ROOKERY_QUARTERS(I, vsubq_s32(a.v[i], b.v[i])); }
static inline void store_i8(std::int8_t* p, I a) {
    const int16x8_t one = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
    const int16x8_t two = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(one), vmovn_s16(two)));
}

static inline U load_u(const void* p) {
    ROOKERY_QUARTERS(U, vld1q_u8(static_cast<const std::uint8_t*>(p) + 16 * i));
}
static inline void store_u(void* p, U w) {
    for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<std::uint8_t*>(p) + 16 * i, w.v[i]);
}
static inline U operator^(U a, U b) { ROOKERY_QUARTERS(U, veorq_u8(a.v[i], b.v[i])); }
static inline U low_nibbles(U w) { ROOKERY_QUARTERS(U, vandq_u8(w.v[i], vdupq_n_u8(15))); }
static inline U high_nibbles(U w) { ROOKERY_QUARTERS(U, vshrq_n_u8(w.v[i], 4)); }

// Four bytes at p in every lane.
static inline uint32x4_t broadcast4(const void* p) {
    std::uint32_t x;
    __builtin_memcpy(&x, p, 4);
    return vdupq_n_u32(x);
}
static inline I dot_small(I acc, U w, const std::int8_t* x4) {
    const int8x16_t x = vreinterpretq_s8_u32(broadcast4(x4));
    ROOKERY_QUARTERS(I, vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), x));
}
constexpr bool CENTRED = true;
static inline I dot_centred(I acc, U w, const std::int8_t* x4) {
    const int8x16_t x = vreinterpretq_s8_u32(broadcast4(x4));
    ROOKERY_QUARTERS(I, vdotq_s32(acc.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(0x80))), x));
}
// The instruction for unsigned by signed came later: w - 128 is signed, and 128 times the sum of x makes it good.
static inline I dot(I acc, U w, const std::int8_t* x4) {
    const int8x16_t x = vreinterpretq_s8_u32(broadcast4(x4));
    const int32x4_t rest = vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(64), x), 1);
    ROOKERY_QUARTERS(I, vdotq_s32(vaddq_s32(acc.v[i], rest),
                                  vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(0x80))), x));
}

static inline F first_bf16(U w) {
    ROOKERY_QUARTERS(F, vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(w.v[i]), 16)));
}
static inline F second_bf16(U w) {
    ROOKERY_QUARTERS(F, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_u32(0xffff0000u))));
}
static inline F dot_bf16(F acc, U w, const std::uint16_t* x2) {
    const uint32x4_t x = broadcast4(x2);
    const F first = set(vgetq_lane_f32(vreinterpretq_f32_u32(vshlq_n_u32(x, 16)), 0));
    const F second = set(vgetq_lane_f32(vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff0000u))), 0));
    return fma(second_bf16(w), second, fma(first_bf16(w), first, acc));
}

static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

#undef ROOKERY_QUARTERS

}  // namespace rookery::ROOKERY_ISA
