// Gradients of the recurrences, one head of one sequence at a time.
//
// A sweep forward keeps the state at the beginning of every chunk; then, from the last chunk to the first, its states
// are made again and its tokens gone through backwards. There a vector is 16 keys: all but one or two of the gradients
// are sums over values, which so stay in their lanes. State and gradient lie [value][key], a slab of values at a time,
// so that a chunk's states stay in the nearest caches.
#pragma once

#include "../training.h"
#include "recurrences.inl"

namespace rookery::ROOKERY_ISA {

constexpr int CHUNK = 16;  // tokens; chunks begin at multiples of it, and at resets

static inline void clear(float* x, Stride count) {
    for (Stride i = 0; i < count; i += 16) store(x + i, zero());
}
static inline void move(float* out, const float* x, Stride count) {
    for (Stride i = 0; i < count; i += 16) store(out + i, load(x + i));
}
static inline void transpose(float* out, const float* x, int n) {
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < n; j += 16) {
            F block[16];
            for (int c = 0; c < 16; ++c) block[c] = load(x + static_cast<Stride>(i + c) * n + j);
            transpose(block);
            for (int c = 0; c < 16; ++c) store(out + static_cast<Stride>(j + c) * n + i, block[c]);
        }
}

static inline bool fresh(const std::uint8_t* resets, int t) { return resets != nullptr && resets[t] != 0; }
static inline int chunk_begin(const std::uint8_t* resets, int end) {
    int t = end - 1;
    while (t % CHUNK != 0 && !fresh(resets, t)) --t;
    return t;
}

// Where the arrays of a unit, one head of one sequence, begin.
struct Unit {
    Stride row, start, square, state;
    const std::uint8_t* resets;
    Unit(const Extent& e, int unit)
        : row(static_cast<Stride>(e.heads) * e.n),
          start(unit / e.heads * static_cast<Stride>(e.time) * row + static_cast<Stride>(unit % e.heads) * e.n),
          square(static_cast<Stride>(e.n) * e.n), state(unit * square),
          resets(e.resets == nullptr ? nullptr : e.resets + unit / e.heads * static_cast<Stride>(e.time)) {}
};

}  // namespace rookery::ROOKERY_ISA
