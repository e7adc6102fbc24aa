// The wrapper types on AVX-512 (F BW VL DQ VNNI BF16): one register each. Meanings: isa_generic.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace rookery::ROOKERY_ISA {

constexpr int REGISTERS = 32;

struct F {
    __m512 v;
};
struct I {
    __m512i v;
};
struct U {
    __m512i v;
};
struct M {
    __mmask16 v;
};

static inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

static inline F set(float x) { return {_mm512_set1_ps(x)}; }
static inline F zero() { return {_mm512_setzero_ps()}; }
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
static inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
static inline void store(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

static inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F operator-(F a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
static inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
static inline F abs(F a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
static inline F copysign(F magnitude, F sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(bit, magnitude.v), _mm512_and_ps(bit, sign.v))};
}
static inline M less(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
static inline F select(M m, F a, F b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }

static inline float sum(F a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float maximum(F a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline F sums(const F x[16]) {
    __m512 y[8], z[4], two[2];  // halves, quarters, pairs of lanes, each vector's in a place of its own
    for (int i = 0; i < 8; ++i)
        y[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i].v, x[i + 8].v, 0x44),
                             _mm512_shuffle_f32x4(x[i].v, x[i + 8].v, 0xee));
    for (int i = 0; i < 4; ++i)
        z[i] = _mm512_add_ps(_mm512_shuffle_f32x4(y[i], y[i + 4], 0x88), _mm512_shuffle_f32x4(y[i], y[i + 4], 0xdd));
    for (int i = 0; i < 2; ++i)
        two[i] = _mm512_add_ps(_mm512_shuffle_ps(z[2 * i], z[2 * i + 1], 0x44),
                               _mm512_shuffle_ps(z[2 * i], z[2 * i + 1], 0xee));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
    // The quarters hold vectors 0 .. 3, 8 .. 11, 4 .. 7, 12 .. 15.
    return {_mm512_shuffle_f32x4(all, all, 0xd8)};
}
static inline void transpose(F x[16]) {
    __m512 y[16], z[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
        y[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4)  // z[i + c]: of these four rows, columns c, c + 4, c + 8 and c + 12
        for (int j = 0; j < 2; ++j) {
            z[i + 2 * j] = _mm512_shuffle_ps(y[i + j], y[i + j + 2], 0x44);
            z[i + 2 * j + 1] = _mm512_shuffle_ps(y[i + j], y[i + j + 2], 0xee);
        }
    for (int c = 0; c < 4; ++c) {
        const __m512 upper_even = _mm512_shuffle_f32x4(z[c], z[c + 4], 0x88);
        const __m512 upper_odd = _mm512_shuffle_f32x4(z[c], z[c + 4], 0xdd);
        const __m512 lower_even = _mm512_shuffle_f32x4(z[c + 8], z[c + 12], 0x88);
        const __m512 lower_odd = _mm512_shuffle_f32x4(z[c + 8], z[c + 12], 0xdd);
        x[c].v = _mm512_shuffle_f32x4(upper_even, lower_even, 0x88);
        x[c + 8].v = _mm512_shuffle_f32x4(upper_even, lower_even, 0xdd);
        x[c + 4].v = _mm512_shuffle_f32x4(upper_odd, lower_odd, 0x88);
        x[c + 12].v = _mm512_shuffle_f32x4(upper_odd, lower_odd, 0xdd);
    }
}

static inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline F scale(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }

static inline F load_f16(const std::uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_bf16(std::uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
}

static inline I iset(int x) { return {_mm512_set1_epi32(x)}; }
static inline I izero() { return {_mm512_setzero_si512()}; }
static inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline void store_i8(std::int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

static inline U load_u(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_u(void* p, U w) { _mm512_storeu_si512(p, w.v); }
static inline U operator^(U a, U b) { return {_mm512_xor_si512(a.v, b.v)}; }
static inline U low_nibbles(U w) { return {_mm512_and_si512(w.v, _mm512_set1_epi8(15))}; }
static inline U high_nibbles(U w) { return {_mm512_and_si512(_mm512_srli_epi16(w.v, 4), _mm512_set1_epi8(15))}; }

// Four bytes at p in every lane.
static inline __m512i broadcast4(const void* p) {
    int x;
    __builtin_memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}
static inline I dot(I acc, U w, const std::int8_t* x4) { return {_mm512_dpbusd_epi32(acc.v, w.v, broadcast4(x4))}; }
constexpr bool CENTRED = false;
static inline I dot_centred(I acc, U w, const std::int8_t* x4) {
    return dot(acc, w, x4) - dot(izero(), {_mm512_set1_epi8(-128)}, x4);
}
static inline I dot_small(I acc, U w, const std::int8_t* x4) { return dot(acc, w, x4); }

static inline F first_bf16(U w) { return {_mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16))}; }
static inline F second_bf16(U w) {
    return {_mm512_castsi512_ps(_mm512_and_si512(w.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline F dot_bf16(F acc, U w, const std::uint16_t* x2) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)broadcast4(x2))};
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace rookery::ROOKERY_ISA
