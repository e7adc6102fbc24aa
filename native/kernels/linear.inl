// Weights times activations, and the activations' encoding; one text for every instruction set and every kind.
//
// A tile is a few rows by one or two panels. Each (row, panel) has its own accumulators, which meet the columns in one
// order that does not depend on the tile: that is the law of rows. One to a few rows walk the panels as one long
// stream; more rows go over a slice of columns of two panels while it lies in the first cache.
#pragma once

#include "../kernels.h"
#include "layout.h"

namespace rookery::ROOKERY_ISA {

struct Span {  // what a tile is made of: columns [begin, end) of its panels and rows
    const std::uint8_t* panel;
    std::size_t panel_bytes;
    const std::uint8_t* x;
    std::size_t x_bytes;
    float* out;
    Stride so;
    int columns, begin, end;
    int width;  // outputs of the last panel
    std::size_t ahead;  // how many bytes on lie the weights to ask for
};

// A stream that computes as it goes must ask for its lines some bytes ahead: q8 on one row from 0.75 to 0.9 of a bare
// read, on six rows from 0.3 to 0.8. Measured best: 16 KiB for codes, 8 KiB for floats. A slice asks for its follower.
constexpr int AHEAD = 16384, AHEAD_FLOATS = 8192;

// Of each kind: ALONE rows at most make a tile of one panel; more rows make tiles of TALL rows and PAIR panels.
// A tile has two accumulators for each row and panel, and room must be left for weights.
constexpr bool ROOMY = REGISTERS >= 32;
constexpr int ROWS = ROOMY ? 12 : REGISTERS >= 8 ? 3 : 2;  // of a tile of one panel

// Calls `what(r, p)` for each, unrolled, so that arrays become registers.
template <int MR, int PR, class What>
__attribute__((always_inline)) static inline void each(What what) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
        for (int p = 0; p < PR; ++p) what(r, p);
}

template <int PR>
static inline F load_outputs(const Span& s, int r, int p) {
    const float* out = s.out + r * s.so + PANEL * p;
    return p < PR - 1 || s.width == PANEL ? load(out) : load(out, s.width);
}
template <int PR>
static inline void store_outputs(const Span& s, int r, int p, F value) {
    float* out = s.out + r * s.so + PANEL * p;
    if (p < PR - 1 || s.width == PANEL)
        store(out, value);
    else
        store(out, value, s.width);
}

// ---- Floats. Even and odd steps add up apart, to hide an addition's latency; they meet at the end of a slice.

struct F32 {
    using Lanes = F;
    static constexpr int STEP = 1, SLICE = 256, COLUMN = 4 * PANEL;  // COLUMN: bytes of a panel's column
    static constexpr int ALONE = ROOMY ? 8 : ROWS, PAIR = ROOMY ? 2 : 1, TALL = ROOMY ? 6 : ROWS;
    template <int PART>
    static Lanes weights(const std::uint8_t* panel, int k) {
        return load(reinterpret_cast<const float*>(panel) + PANEL * k);
    }
    static F step(F acc, Lanes w, const std::uint8_t* x, int k) {
        return fma(w, set(reinterpret_cast<const float*>(x)[k]), acc);
    }
};

struct F16 : F32 {  // weights are widened at each use: better for eight rows of one panel than six of two
    static constexpr int COLUMN = 2 * PANEL, PAIR = 1, TALL = ALONE;
    template <int PART>
    static Lanes weights(const std::uint8_t* panel, int k) {
        return load_f16(reinterpret_cast<const std::uint16_t*>(panel) + PANEL * k);
    }
};

struct Bf16Exact : F16 {
    template <int PART>
    static Lanes weights(const std::uint8_t* panel, int k) {
        const U pairs = load_u(panel + 2 * PANEL * (k - PART));
        return PART == 0 ? first_bf16(pairs) : second_bf16(pairs);
    }
};

struct Bf16 {
    using Lanes = U;
    static constexpr int STEP = 2, SLICE = 512, COLUMN = 2 * PANEL;
    static constexpr int ALONE = ROWS, PAIR = ROOMY ? 2 : 1, TALL = ROWS / PAIR;
    template <int PART>
    static Lanes weights(const std::uint8_t* panel, int k) {
        return load_u(panel + 2 * PANEL * k);
    }
    static F step(F acc, Lanes w, const std::uint8_t* x, int k) {
        return dot_bf16(acc, w, reinterpret_cast<const std::uint16_t*>(x) + k);
    }
};

template <class W, int PART, int MR, int PR>
static inline void float_step(F (&acc)[MR][PR], const Span& s, int k) {
    typename W::Lanes w[PR];
    each<1, PR>([&](int, int p) {
        const std::uint8_t* panel = s.panel + p * s.panel_bytes;
        w[p] = W::template weights<PART>(panel, k);
        if (PART == 0 || W::STEP * W::COLUMN == LINE) prefetch(panel + k * W::COLUMN + s.ahead);
    });
    each<MR, PR>([&](int r, int p) { acc[r][p] = W::step(acc[r][p], w[p], s.x + r * s.x_bytes, k); });
}

template <class W>
struct Floats {
    static constexpr int ASKS = AHEAD_FLOATS, SLICE = W::SLICE, ALONE = W::ALONE, PAIR = W::PAIR, TALL = W::TALL;
    template <int MR, int PR>
    static void tile(const Span& s) {
        for (int begin = s.begin; begin < s.end; begin += SLICE) {
            const int end = s.end - begin < SLICE ? s.end : begin + SLICE;
            F even[MR][PR], odd[MR][PR];
            each<MR, PR>([&](int r, int p) { even[r][p] = odd[r][p] = zero(); });
            int k = begin;
            for (; k + W::STEP < end; k += 2 * W::STEP) {
                float_step<W, 0>(even, s, k);
                float_step<W, 1>(odd, s, k + W::STEP);
            }
            if (k < end) float_step<W, 0>(even, s, k);
            each<MR, PR>([&](int r, int p) {
                const F part = even[r][p] + odd[r][p];
                store_outputs<PR>(s, r, p, begin > 0 ? load_outputs<PR>(s, r, p) + part : part);
            });
        }
    }
};

// ---- Codes. Whole numbers are exact within a scale's columns; the scales bring them into one float per (row, panel).

struct Q8 {
    static constexpr Kind kind = Kind::q8;
    static constexpr int SPAN = 32, LOADS = 8;  // columns of a scale, and their lines of codes
    static constexpr int HEAD = 32;             // their bytes before the codes
    struct Scale {
        F scale;
    };
    static I start(const Codes& x) { return CENTRED ? izero() : iset(x.start8); }
    static I step(I acc, U w, const Codes& x, int, int j) {
        return CENTRED ? dot_centred(acc, w, x.code + 4 * j) : dot(acc, w, x.code + 4 * j);
    }
    static Scale scale(const std::uint8_t* panel, int, int i) {
        return {load_f16(reinterpret_cast<const std::uint16_t*>(panel) + PANEL * i)};
    }
    static F scaled(I sum, const Scale& s, const Codes&, int) { return to_float(sum) * s.scale; }
};

struct Q4 : Q8 {
    static constexpr Kind kind = Kind::q4;
    static constexpr int LOADS = 4;
    static I start(const Codes& x) { return iset(x.start4); }
    static I step(I acc, U w, const Codes& x, int, int j) {
        return dot_small(dot_small(acc, low_nibbles(w), x.code + 4 * j), high_nibbles(w), x.code + 16 + 4 * j);
    }
};

struct X8 {
    static constexpr Kind kind = Kind::x8;
    static constexpr int SPAN = 16, LOADS = 4, HEAD = 128;
    struct Scale {
        F scale, minimum;
    };
    static I start(const Codes&) { return izero(); }
    static I step(I acc, U w, const Codes& x, int half, int j) { return dot_small(acc, w, x.code + 16 * half + 4 * j); }
    static Scale scale(const std::uint8_t* panel, int columns, int i) {
        const float* scales = reinterpret_cast<const float*>(panel) + PANEL * i;
        return {load(scales), load(scales + columns)};  // as many minimums behind them
    }
    static F scaled(I sum, const Scale& s, const Codes& x, int half) {
        return fma(s.minimum, set(x.sum[half]), to_float(sum) * s.scale);
    }
};

template <class W>
struct Coded {
    static constexpr int ASKS = AHEAD, SLICE = 512, ALONE = ROWS, PAIR = ROOMY ? 2 : 1, TALL = ROWS / PAIR,
                         PARTS = BLOCK / W::SPAN;
    template <int MR, int PR>
    static void tile(const Span& s) {
        F acc[MR][PR];
        each<MR, PR>([&](int r, int p) { acc[r][p] = s.begin > 0 ? load_outputs<PR>(s, r, p) : zero(); });
        const std::uint8_t* codes = s.panel + head_bytes(W::kind, s.columns);
        for (int i = s.begin / W::SPAN; i < s.end / W::SPAN; ++i) {
            const std::uint8_t* x = s.x + i / PARTS * sizeof(Codes);
            const auto row = [&](int r) -> const Codes& { return *reinterpret_cast<const Codes*>(x + r * s.x_bytes); };
            const int part = i % PARTS;
            if constexpr (PR == 1)  // the scales have their turn too, or each panel would begin with lines not asked for
                for (int line = 0; line < W::HEAD; line += LINE) prefetch(s.panel + i * W::HEAD + line + s.ahead);
            I sum[MR][PR];
            each<MR, PR>([&](int r, int p) { sum[r][p] = W::start(row(r)); });
            each<W::LOADS, 1>([&](int j, int) {
                const std::uint8_t* line = codes + (i * W::LOADS + j) * LINE;
                U w[PR];
                each<1, PR>([&](int, int p) {
                    w[p] = load_u(line + p * s.panel_bytes);
                    prefetch(line + p * s.panel_bytes + s.ahead);
                });
                each<MR, PR>([&](int r, int p) { sum[r][p] = W::step(sum[r][p], w[p], row(r), part, j); });
            });
            each<1, PR>([&](int, int p) {
                const auto scale = W::scale(s.panel + p * s.panel_bytes, s.columns, i);
                each<MR, 1>([&](int r, int) {
                    acc[r][p] = fma(W::scaled(sum[r][p], scale, row(r), part), set(row(r).scale), acc[r][p]);
                });
            });
        }
        each<MR, PR>([&](int r, int p) { store_outputs<PR>(s, r, p, acc[r][p]); });
    }
};

// ---- From a call to tiles

template <class T, int PR, int MR>
static inline void run_tile(int rows, const Span& s) {
    if constexpr (MR > 0) {
        if (rows == MR)
            T::template tile<MR, PR>(s);
        else
            run_tile<T, PR, MR - 1>(rows, s);
    }
}

template <class T, int PR>
static inline void run_rows(int rows, std::size_t head, const Span& whole) {
    const std::size_t column = (whole.panel_bytes - head) / whole.columns;
    const int blocks = (rows + T::TALL - 1) / T::TALL;
    for (int begin = 0; begin < whole.columns; begin += T::SLICE) {
        const bool more = whole.columns - begin > T::SLICE;
        for (int i = 0; i < blocks; ++i) {
            const int row = rows * i / blocks, next = rows * (i + 1) / blocks;
            Span s = whole;
            s.begin = begin;
            s.end = more ? begin + T::SLICE : whole.columns;
            s.ahead = more ? T::SLICE * column : PR * whole.panel_bytes - head - begin * column;  // the next panels
            s.x += row * s.x_bytes;
            s.out += row * s.so;
            run_tile<T, PR, T::TALL>(next - row, s);
        }
    }
}

template <class T>
static void linear(const Weight& w, int first, int last, const std::uint8_t* x, std::size_t x_bytes, int rows,
                   float* out, Stride so) {
    const std::size_t bytes = size_of_panel(w.kind, w.columns), head = head_bytes(w.kind, w.columns);
    const bool few = rows <= T::ALONE;
    for (int p = first, count = 1; p < last; p += count) {
        count = !few && last - p >= T::PAIR ? T::PAIR : 1;
        const int left = w.rows - PANEL * (p + count - 1);
        const Span s = {
            .panel = w.data + p * bytes,
            .panel_bytes = bytes,
            .x = x,
            .x_bytes = x_bytes,
            .out = out + PANEL * (p - first),
            .so = so,
            .columns = w.columns,
            .begin = 0,
            .end = w.columns,
            .width = left < PANEL ? left : PANEL,
            .ahead = T::ASKS,
        };
        if (few)
            run_tile<T, 1, T::ALONE>(rows, s);
        else if (count == T::PAIR)
            run_rows<T, T::PAIR>(rows, head, s);
        else
            run_rows<T, 1>(rows, head, s);
    }
}

// ---- Encoding

static void encode_bf16(std::uint8_t* out, const float* x, Stride sx, int rows, int columns, int begin, int end) {
    const std::size_t stride = row_bytes(Input::bf16, columns);
    for (int r = 0; r < rows; ++r) {
        auto* to = reinterpret_cast<std::uint16_t*>(out + r * stride) + begin;
        const float* from = x + r * sx;
        int left = end - begin;
        for (; left >= 16; left -= 16, to += 16, from += 16) store_bf16(to, load(from));
        if (left > 0) {
            std::uint16_t rest[16];
            store_bf16(rest, load(from, left));
            for (int i = 0; i < left; ++i) to[i] = rest[i];
        }
        if (end == columns && columns % 2 == 1) to[left] = 0;  // the last pair's second
    }
}

static inline void encode_block(const float* x, Codes& to) {
    const F a = load(x), b = load(x + 16);
    const float strange = sum(fma(a, zero(), b * zero()));  // NaN if anything is not finite, else 0
    const float scale = maximum(max(abs(a), abs(b))) / 127.0f + strange;
    const bool some = scale > 1e-37f;  // or the inverse might not be finite; such small numbers count as zeros
    const F inverse = set(some ? 1.0f / scale : 0.0f);
    const F p = some ? round(a * inverse) : zero(), q = some ? round(b * inverse) : zero();
    store_i8(to.code, to_int(p));
    store_i8(to.code + 16, to_int(q));
    to.scale = scale <= 1e-37f ? 0.0f : scale;
    to.sum[0] = sum(p);
    to.sum[1] = sum(q);
    const auto all = static_cast<std::int32_t>(to.sum[0] + to.sum[1]);
    to.start8 = -128 * all;
    to.start4 = -8 * all;
}

static void encode_codes(std::uint8_t* out, const float* x, Stride sx, int rows, int columns, int begin, int end) {
    const std::size_t stride = row_bytes(Input::codes, columns);
    for (int r = 0; r < rows; ++r) {
        Codes* to = reinterpret_cast<Codes*>(out + r * stride) + begin / BLOCK;
        for (int c = 0; c < end - begin; c += BLOCK) encode_block(x + r * sx + c, *to++);
    }
}

static void fill_linear(Kernels& table) {
    const auto at = [&](Kind kind, Input input) -> auto& {
        return table.linear[static_cast<int>(kind)][static_cast<int>(input)];
    };
    at(Kind::f32, Input::f32) = linear<Floats<F32>>;
    at(Kind::f16, Input::f32) = linear<Floats<F16>>;
    at(Kind::bf16, Input::f32) = linear<Floats<Bf16Exact>>;
    at(Kind::bf16, Input::bf16) = linear<Floats<Bf16>>;
    at(Kind::q8, Input::codes) = linear<Coded<Q8>>;
    at(Kind::q4, Input::codes) = linear<Coded<Q4>>;
    at(Kind::x8, Input::codes) = linear<Coded<X8>>;
    table.encode[static_cast<int>(Input::bf16)] = encode_bf16;
    table.encode[static_cast<int>(Input::codes)] = encode_codes;
}

}  // namespace rookery::ROOKERY_ISA
