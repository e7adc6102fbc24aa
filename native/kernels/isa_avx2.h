// The wrapper types on AVX2, FMA and F16C: two registers each. Meanings: isa_generic.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace rookery::ROOKERY_ISA {

constexpr int REGISTERS = 8;

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};
struct U {
    __m256i a, b;
};
struct M {
    __m256 a, b;
};

static inline __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline F load(const float* p, int n) {
    return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
static inline void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline void store(float* p, F x, int n) {
    _mm256_maskstore_ps(p, first_lanes(n), x.a);
    _mm256_maskstore_ps(p + 8, first_lanes(n - 8), x.b);
}

static inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F operator-(F x) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(x.a, bit), _mm256_xor_ps(x.b, bit)};
}
static inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline F abs(F x) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(bit, x.a), _mm256_andnot_ps(bit, x.b)};
}
static inline F copysign(F magnitude, F sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(bit, magnitude.a), _mm256_and_ps(bit, sign.a)),
            _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.b), _mm256_and_ps(bit, sign.b))};
}
static inline M less(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)}; }
static inline F select(M m, F x, F y) { return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)}; }

static inline float sum(F x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float maximum(F x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline __m256 eight_sums(const F* x) {
    __m256 pair[4];
    for (int i = 0; i < 4; ++i)
        pair[i] = _mm256_hadd_ps(_mm256_add_ps(x[2 * i].a, x[2 * i].b), _mm256_add_ps(x[2 * i + 1].a, x[2 * i + 1].b));
    const __m256 low = _mm256_hadd_ps(pair[0], pair[1]), high = _mm256_hadd_ps(pair[2], pair[3]);
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
static inline F sums(const F x[16]) { return {eight_sums(x), eight_sums(x + 8)}; }
static inline void transpose(__m256 x[8]) {
    __m256 y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            x[i + 2 * j] = _mm256_shuffle_ps(y[i + j], y[i + j + 2], 0x44);
            x[i + 2 * j + 1] = _mm256_shuffle_ps(y[i + j], y[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        y[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
        y[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) x[i] = y[i];
}
static inline void transpose(F x[16]) {
    __m256 block[4][8];  // left and right of the upper rows, then of the lower
    for (int i = 0; i < 8; ++i) {
        block[0][i] = x[i].a;
        block[1][i] = x[i].b;
        block[2][i] = x[i + 8].a;
        block[3][i] = x[i + 8].b;
    }
    for (auto& eight : block) transpose(eight);
    for (int i = 0; i < 8; ++i) {
        x[i] = {block[0][i], block[2][i]};
        x[i + 8] = {block[1][i], block[3][i]};
    }
}

static inline F round(F x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
static inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline __m256 scale(__m256 x, __m256 n) {
    const __m256i whole = _mm256_cvtps_epi32(n), one = _mm256_srai_epi32(whole, 1), two = _mm256_sub_epi32(whole, one);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(one, bias), 23));
    const __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(two, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(x, p), q);
}
static inline F scale(F x, F n) { return {scale(x.a, n.a), scale(x.b, n.b)}; }

static inline __m128i load8(const std::uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
static inline F load_f16(const std::uint16_t* p) { return {_mm256_cvtph_ps(load8(p)), _mm256_cvtph_ps(load8(p + 8))}; }
// The bf16 nearest to each lane, in its low half.
static inline __m256i nearest_bf16(__m256 x) {
    const __m256i b = _mm256_castps_si256(x), top = _mm256_srli_epi32(b, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
}
static inline void store_bf16(std::uint16_t* p, F x) {
    const __m256i packed = _mm256_packus_epi32(nearest_bf16(x.a), nearest_bf16(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

static inline I iset(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline void store_i8(std::int8_t* p, I x) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i words = _mm256_packus_epi32(_mm256_and_si256(x.a, byte), _mm256_and_si256(x.b, byte));
    const __m256i order = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(order), _mm256_extracti128_si256(order, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

static inline U load_u(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
static inline void store_u(void* p, U w) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, w.a);
    _mm256_storeu_si256(q + 1, w.b);
}
static inline U operator^(U x, U y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
static inline U low_nibbles(U w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
static inline U high_nibbles(U w) { return low_nibbles({_mm256_srli_epi16(w.a, 4), _mm256_srli_epi16(w.b, 4)}); }

// Four bytes at p in every lane.
static inline __m256i broadcast4(const void* p) {
    int x;
    __builtin_memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}
// In 16-bit products of even and of odd bytes: pairs of 8-bit products would saturate.
static inline __m256i dot(__m256i acc, __m256i w, __m256i even, __m256i odd) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(0xff)), even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
}
static inline I dot(I acc, U w, const std::int8_t* x4) {
    const __m256i x = broadcast4(x4), odd = _mm256_srai_epi16(x, 8), even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
    return {dot(acc.a, w.a, even, odd), dot(acc.b, w.b, even, odd)};
}
constexpr bool CENTRED = true;
// |w - 128| is at most 128 and |x| at most 127: two products fit in 16 bits.
static inline __m256i dot_centred(__m256i acc, __m256i w, __m256i x) {
    const __m256i c = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    const __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(x, c));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}
static inline I dot_centred(I acc, U w, const std::int8_t* x4) {
    const __m256i x = broadcast4(x4);
    return {dot_centred(acc.a, w.a, x), dot_centred(acc.b, w.b, x)};
}
static inline __m256i dot_small(__m256i acc, __m256i w, __m256i x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
static inline I dot_small(I acc, U w, const std::int8_t* x4) {
    const __m256i x = broadcast4(x4);
    return {dot_small(acc.a, w.a, x), dot_small(acc.b, w.b, x)};
}

static inline F first_bf16(U w) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(w.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.b, 16))};
}
static inline F second_bf16(U w) {
    const __m256i top = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(w.a, top)), _mm256_castsi256_ps(_mm256_and_si256(w.b, top))};
}
static inline F dot_bf16(F acc, U w, const std::uint16_t* x2) {
    const __m256i x = broadcast4(x2);
    return fma(second_bf16(w), second_bf16({x, x}), fma(first_bf16(w), first_bf16({x, x}), acc));
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace rookery::ROOKERY_ISA
