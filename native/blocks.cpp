// Layouts as in ggml (values in float32; all products of a scale and codes are rounded at most once).
//
// Encoding minimises the squared error: from several starting scales, codes and scales are fitted to each other by
// least squares, and the best of what the block can really store is kept. The first start is the plain formula, and
// nothing replaces it but a smaller error, so that numbers that came out of a block go back into the same one.
// formats/blocks_numpy.py does the same steps, sums in the same order, and gives the same bytes for the simple types.
#include "blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

namespace rookery {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float widen(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
    if (rest >= 0x7C00) return std::bit_cast<float>(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
    if (rest < 0x0400) {  // subnormal: a whole number of 2^-24
        const float value = static_cast<float>(rest) * 0x1p-24f;
        return sign ? -value : value;
    }
    return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000u));
}

// Ties to even, for sizes below 2^22.
float nearest(float value) { return (value + 12582912.f) - 12582912.f; }

// Round to nearest even; what is too large becomes the largest, NaN becomes 0.
std::uint16_t narrow(float value) {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (!(size > 0)) return size == 0 ? sign : 0;
    if (size >= 65504.f) return sign | 0x7BFF;
    if (size < 0x1p-14f) return sign | static_cast<std::uint16_t>(nearest(size * 0x1p24f));
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(size) - 0x38000000u;
    return sign | static_cast<std::uint16_t>(std::min<std::uint32_t>((bits + 0xFFF + ((bits >> 13) & 1)) >> 13, 0x7BFF));
}

float as_half(float value) { return widen(narrow(value)); }

float load_half(const std::uint8_t* bytes) {
    return widen(static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8));
}

void store_half(float value, std::uint8_t* bytes) {
    const std::uint16_t half = narrow(value);
    bytes[0] = static_cast<std::uint8_t>(half);
    bytes[1] = static_cast<std::uint8_t>(half >> 8);
}

// NaN becomes `low`: a code is always a code.
float code_within(float value, float low, float high) {
    value = value > low ? value : low;
    return nearest(value < high ? value : high);
}

// Sums run in eight lanes, which vectorise; the NumPy stand-in adds in the same order.
using Lanes = std::array<float, 8>;

float total(const Lanes& lanes) {
    float sum = lanes[0];
    for (int i = 1; i < 8; ++i) sum += lanes[i];
    return sum;
}

template <int N, class Term>
float sum(Term term) {
    Lanes lanes{};
    for (int i = 0; i < N; i += 8)
        for (int l = 0; l < 8; ++l) lanes[l] += term(i + l);
    return total(lanes);
}

// The best codes of d * q + m, low <= q <= high, and their squared error.
template <int N>
float fit_codes(const float* x, float d, float m, float low, float high, float* q) {
    const float inverse = d != 0 ? 1 / d : 0;
    for (int i = 0; i < N; ++i) q[i] = code_within((x[i] - m) * inverse, low, high);
    return sum<N>([&](int i) {
        const float rest = x[i] - (d * q[i] + m);
        return rest * rest;
    });
}

template <int N>
float fit_scale(const float* x, const float* q) {
    const float qq = sum<N>([&](int i) { return q[i] * q[i]; });
    return qq > 0 ? sum<N>([&](int i) { return x[i] * q[i]; }) / qq : 0;
}

struct Affine {
    float d, m;
};

template <int N>
Affine fit_affine(const float* x, float sx, const float* q, Affine old) {
    const float sq = sum<N>([&](int i) { return q[i]; });
    const float sqq = sum<N>([&](int i) { return q[i] * q[i]; });
    const float sxq = sum<N>([&](int i) { return x[i] * q[i]; });
    const float det = N * sqq - sq * sq;
    if (!(det > 0)) return old;
    const float d = (N * sxq - sx * sq) / det;
    return {d, (sx - d * sq) / N};
}

// The number of largest magnitude, the first of several.
template <int N>
float extreme(const float* x) {
    float found = 0;
    for (int i = 0; i < N; ++i)
        if (std::fabs(x[i]) > std::fabs(found)) found = x[i];
    return found;
}

// Scale types. Numbers of size `top` get the code `ends[i]`, clipped where that is beyond the range.
template <int N, bool kHalf>
float search_scale(const float* x, float top, float low, float high, std::span<const float> ends, float* best_q) {
    const auto stored = [](float d) { return kHalf ? as_half(d) : d; };
    float q[N], best_error = kInfinity, best = 0;
    std::fill_n(best_q, N, 0.f);
    for (const float end : ends) {
        float d = stored(top / end);
        for (int round = 0; round < 2; ++round) {
            const float error = fit_codes<N>(x, d, 0, low, high, q);
            if (error < best_error) {
                best_error = error, best = d;
                std::copy_n(q, N, best_q);
            }
            d = stored(fit_scale<N>(x, q));
        }
    }
    return best;
}

// Types with a minimum. The range of the numbers gets `top + spare[i]` steps, both ends clipped alike.
template <int N, bool kHalf>
Affine search_affine(const float* x, float top, std::span<const float> spare, int rounds, float* best_q) {
    const auto stored = [](Affine a) {
        if (kHalf) return Affine{as_half(a.d), as_half(a.m)};
        return Affine{a.d, std::min(a.m, 0.f)};  // K types subtract their minimum
    };
    float low = *std::min_element(x, x + N);
    const float high = *std::max_element(x, x + N);
    if (!kHalf) low = std::min(low, 0.f);
    const float range = high - low, sx = sum<N>([&](int i) { return x[i]; });
    float q[N], best_error = kInfinity;
    Affine best{0, 0};
    std::fill_n(best_q, N, 0.f);
    for (const float more : spare) {
        const float step = kHalf ? as_half(range / (top + more)) : range / (top + more);
        Affine a = stored({step, low + (range - step * top) * 0.5f});
        for (int round = 0; round < rounds; ++round) {
            const float error = fit_codes<N>(x, a.d, a.m, 0, top, q);
            if (error < best_error) {
                best_error = error, best = a;
                std::copy_n(q, N, best_q);
            }
            a = fit_affine<N>(x, sx, q, a);
            if (!kHalf && a.m > 0) a = {fit_scale<N>(x, q), 0};
            a = stored(a);
        }
    }
    return best;
}

// ---- 32 elements: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1

void decode_q8_0(const std::uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

void encode_q8_0(const float* x, std::uint8_t* block) {
    constexpr float ends[] = {127};
    float q[32];
    store_half(search_scale<32, true>(x, std::fabs(extreme<32>(x)), -127, 127, ends, q), block);
    for (int i = 0; i < 32; ++i) block[2 + i] = static_cast<std::uint8_t>(static_cast<int>(q[i]));
}

template <int kBits, bool kMinimum>
void decode_simple(const std::uint8_t* block, float* out) {
    const float d = load_half(block), m = kMinimum ? load_half(block + 2) : 0;
    block += kMinimum ? 4 : 2;
    std::uint32_t fifth = 0;
    if (kBits == 5) {
        for (int i = 0; i < 4; ++i) fifth |= static_cast<std::uint32_t>(block[i]) << 8 * i;
        block += 4;
    }
    for (int i = 0; i < 32; ++i) {
        const int nibble = i < 16 ? block[i] & 15 : block[i - 16] >> 4;
        const int code = nibble | static_cast<int>(fifth >> i & 1) << 4;
        if (kMinimum)
            out[i] = d * static_cast<float>(code) + m;
        else
            out[i] = d * static_cast<float>(code - (1 << (kBits - 1)));
    }
}

template <int kBits, bool kMinimum>
void encode_simple(const float* x, std::uint8_t* block) {
    float q[32];
    float zero = 0;
    if (kMinimum) {
        constexpr float spare[] = {0, 0.5, 1, 1.5, 2, 3};
        const Affine a = search_affine<32, true>(x, (1 << kBits) - 1, spare, 2, q);
        store_half(a.d, block);
        store_half(a.m, block + 2);
        block += 4;
    } else {
        zero = 1 << (kBits - 1);
        const float ends[] = {-zero,        -zero + 0.7f, -zero + 0.4f, -zero - 0.3f, -zero - 0.6f,
                              -zero - 0.9f, -zero - 1.4f, zero - 1,     zero - 0.7f,  zero - 0.3f};
        store_half(search_scale<32, true>(x, extreme<32>(x), -zero, zero - 1, ends, q), block);
        block += 2;
    }
    std::uint32_t fifth = 0;
    std::uint8_t codes[32];
    for (int i = 0; i < 32; ++i) {
        codes[i] = static_cast<std::uint8_t>(q[i] + zero);
        fifth |= static_cast<std::uint32_t>(codes[i] >> 4 & 1) << i;
    }
    if (kBits == 5)
        for (int i = 0; i < 4; ++i) *block++ = static_cast<std::uint8_t>(fifth >> 8 * i);
    for (int i = 0; i < 16; ++i) block[i] = static_cast<std::uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

// ---- 256 elements: Q4_K and Q5_K, eight parts of 32; a part's value is (d * scale) * q - (dmin * minimum)

constexpr int kParts = 8, kPart = 32;

struct Six {  // six-bit numbers
    std::uint8_t scale[kParts], minimum[kParts];
};

Six unpack_six(const std::uint8_t* s) {
    Six out;
    for (int j = 0; j < 4; ++j) {
        out.scale[j] = s[j] & 63;
        out.minimum[j] = s[j + 4] & 63;
        out.scale[j + 4] = static_cast<std::uint8_t>((s[j + 8] & 15) | s[j] >> 6 << 4);
        out.minimum[j + 4] = static_cast<std::uint8_t>(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
    return out;
}

void pack_six(const Six& six, std::uint8_t* s) {
    for (int j = 0; j < 4; ++j) {
        s[j] = static_cast<std::uint8_t>(six.scale[j] | six.scale[j + 4] >> 4 << 6);
        s[j + 4] = static_cast<std::uint8_t>(six.minimum[j] | six.minimum[j + 4] >> 4 << 6);
        s[j + 8] = static_cast<std::uint8_t>((six.scale[j + 4] & 15) | (six.minimum[j + 4] & 15) << 4);
    }
}

template <int kBits>
void decode_k(const std::uint8_t* block, float* out) {
    const float d = load_half(block), dmin = load_half(block + 2);
    const Six six = unpack_six(block + 4);
    const std::uint8_t* high = block + 16;
    const std::uint8_t* low = high + (kBits == 5 ? 32 : 0);
    for (int part = 0; part < kParts; ++part) {
        const float scale = d * six.scale[part], minimum = dmin * six.minimum[part];
        for (int i = 0; i < kPart; ++i) {
            int code = low[part / 2 * 32 + i] >> (part % 2 ? 4 : 0) & 15;
            if (kBits == 5) code |= (high[i] >> part & 1) << 4;
            out[part * kPart + i] = scale * static_cast<float>(code) - minimum;
        }
    }
}

struct Super {  // one candidate for a whole block
    float d = 0, dmin = 0, error = kInfinity;
    Six six{};
    float q[kParts * kPart] = {};
};

// The best six-bit numbers about the ideal ones of each part, under given d and dmin.
void choose_six(const float* x, const Affine* ideal, float top, Super& s) {
    const auto about = [](float wanted, float unit) {
        return static_cast<int>(code_within(unit > 0 ? wanted / unit : 0, 0, 63));
    };
    s.error = 0;
    for (int part = 0; part < kParts; ++part) {
        const int scale = about(ideal[part].d, s.d), minimum = about(-ideal[part].m, s.dmin);
        float q[kPart], best = kInfinity;
        for (int sc = std::max(scale - 1, 0); sc <= std::min(scale + 1, 63); ++sc) {
            for (int m = std::max(minimum - 1, 0); m <= std::min(minimum + 1, 63); ++m) {
                if (sc != scale && m != minimum) continue;
                const float error = fit_codes<kPart>(x + part * kPart, s.d * sc, -(s.dmin * m), 0, top, q);
                if (!(error < best)) continue;
                best = error;
                s.six.scale[part] = static_cast<std::uint8_t>(sc);
                s.six.minimum[part] = static_cast<std::uint8_t>(m);
                std::copy_n(q, kPart, s.q + part * kPart);
            }
        }
        s.error += best;
    }
}

// d and dmin by least squares, all codes given.
Affine fit_super(const float* x, const Super& s) {
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (int part = 0; part < kParts; ++part) {
        const float* y = x + part * kPart;
        const float* q = s.q + part * kPart;
        const double scale = s.six.scale[part], minimum = s.six.minimum[part];
        const double sq = sum<kPart>([&](int i) { return q[i]; });
        const double sqq = sum<kPart>([&](int i) { return q[i] * q[i]; });
        const double sx = sum<kPart>([&](int i) { return y[i]; });
        const double sxq = sum<kPart>([&](int i) { return y[i] * q[i]; });
        aa += scale * scale * sqq;
        ab -= scale * minimum * sq;
        bb += minimum * minimum * kPart;
        ax += scale * sxq;
        bx -= minimum * sx;
    }
    const double det = aa * bb - ab * ab;
    if (det > 1e-9 * aa * bb) return {static_cast<float>((ax * bb - bx * ab) / det),
                                      static_cast<float>((bx * aa - ax * ab) / det)};
    return {aa > 0 ? static_cast<float>(ax / aa) : 0, s.dmin};
}

template <int kBits>
void encode_k(const float* x, std::uint8_t* block) {
    constexpr float top = (1 << kBits) - 1;
    constexpr float spare[] = {0, -1, 0.5, 1, 1.5, 2, 3};
    Affine ideal[kParts];
    float q[kPart], scale = 0, minimum = 0;
    for (int part = 0; part < kParts; ++part) {
        ideal[part] = search_affine<kPart, false>(x + part * kPart, top, spare, 3, q);
        scale = std::max(scale, ideal[part].d);
        minimum = std::max(minimum, -ideal[part].m);
    }
    Super best, next;
    next.d = as_half(scale / 63);
    next.dmin = as_half(minimum / 63);
    for (int round = 0; round < 4; ++round) {
        choose_six(x, ideal, top, next);
        if (!(next.error < best.error)) break;
        best = next;
        const Affine a = fit_super(x, best);
        next.d = as_half(std::max(a.d, 0.f));
        next.dmin = as_half(std::max(a.m, 0.f));
    }
    store_half(best.d, block);
    store_half(best.dmin, block + 2);
    pack_six(best.six, block + 4);
    std::uint8_t* high = block + 16;
    std::uint8_t* low = high + (kBits == 5 ? 32 : 0);
    std::memset(high, 0, kBits == 5 ? 160 : 128);
    for (int part = 0; part < kParts; ++part) {
        for (int i = 0; i < kPart; ++i) {
            const int code = static_cast<int>(best.q[part * kPart + i]);
            low[part / 2 * 32 + i] |= static_cast<std::uint8_t>((code & 15) << (part % 2 ? 4 : 0));
            if (kBits == 5) high[i] |= static_cast<std::uint8_t>((code >> 4) << part);
        }
    }
}

// ---- Q6_K, sixteen parts of 16; a part's value is (d * scale) * q, -32 <= q < 32

void decode_q6_k(const std::uint8_t* block, float* out) {
    const float d = load_half(block + 208);
    for (int run = 0; run < 8; ++run) {  // 32 elements, whose codes have their places in common
        const std::uint8_t* low = block + run / 4 * 64 + run % 2 * 32;
        const std::uint8_t* high = block + 128 + run / 4 * 32;
        const int low_shift = run % 4 / 2 * 4, high_shift = run % 4 * 2;
        for (int part = 0; part < 2; ++part) {
            const float scale = d * static_cast<float>(static_cast<std::int8_t>(block[192 + run * 2 + part]));
            for (int i = part * 16; i < part * 16 + 16; ++i) {
                const int code = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
                out[run * 32 + i] = scale * static_cast<float>(code - 32);
            }
        }
    }
}

void encode_q6_k(const float* x, std::uint8_t* block) {
    constexpr float ends[] = {-32, -31, -30.5, -31.5, -32.5, -33, -34, 31, 31.5, 30.5};
    float ideal[16], q[16];
    for (int part = 0; part < 16; ++part) {
        const float* y = x + part * 16;
        ideal[part] = search_scale<16, false>(y, extreme<16>(y), -32, 31, ends, q);
    }
    float best_error = kInfinity, best_d = 0, codes[256] = {}, best_codes[256] = {};
    int scales[16] = {}, best_scales[16] = {};
    float d = as_half(extreme<16>(ideal) / -128);
    for (int round = 0; round < 4; ++round) {
        float error = 0;
        for (int part = 0; part < 16; ++part) {
            const int about = static_cast<int>(code_within(d != 0 ? ideal[part] / d : 0, -128, 127));
            float best = kInfinity;
            for (int sc = std::max(about - 1, -128); sc <= std::min(about + 1, 127); ++sc) {
                const float e = fit_codes<16>(x + part * 16, d * static_cast<float>(sc), 0, -32, 31, q);
                if (!(e < best)) continue;
                best = e;
                scales[part] = sc;
                std::copy_n(q, 16, codes + part * 16);
            }
            error += best;
        }
        if (!(error < best_error)) break;
        best_error = error, best_d = d;
        std::copy_n(scales, 16, best_scales);
        std::copy_n(codes, 256, best_codes);
        double aa = 0, ax = 0;
        for (int i = 0; i < 256; ++i) {
            const double a = scales[i / 16] * codes[i];
            aa += a * a;
            ax += a * x[i];
        }
        d = aa > 0 ? as_half(static_cast<float>(ax / aa)) : 0;
    }
    std::memset(block, 0, 192);
    for (int i = 0; i < 256; ++i) {
        const int code = static_cast<int>(best_codes[i]) + 32, half = i / 128, run = i % 128 / 32;
        block[half * 64 + run % 2 * 32 + i % 32] |= static_cast<std::uint8_t>((code & 15) << run / 2 * 4);
        block[128 + half * 32 + i % 32] |= static_cast<std::uint8_t>((code >> 4) << run * 2);
    }
    for (int part = 0; part < 16; ++part) block[192 + part] = static_cast<std::uint8_t>(best_scales[part]);
    store_half(best_d, block + 208);
}

constexpr BlockType kTypes[] = {
    {"q8_0", 34, 32, decode_q8_0, encode_q8_0},
    {"q4_0", 18, 32, decode_simple<4, false>, encode_simple<4, false>},
    {"q4_1", 20, 32, decode_simple<4, true>, encode_simple<4, true>},
    {"q5_0", 22, 32, decode_simple<5, false>, encode_simple<5, false>},
    {"q5_1", 24, 32, decode_simple<5, true>, encode_simple<5, true>},
    {"q4_k", 144, 256, decode_k<4>, encode_k<4>},
    {"q5_k", 176, 256, decode_k<5>, encode_k<5>},
    {"q6_k", 210, 256, decode_q6_k, encode_q6_k},
};

}  // namespace

const BlockType* block_type(std::string_view name) {
    const auto* found = std::ranges::find(kTypes, name, &BlockType::name);
    return found == std::end(kTypes) ? nullptr : found;
}

float widen_half(std::uint16_t half) { return widen(half); }

}  // namespace rookery
