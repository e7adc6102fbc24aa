// The recurrences as training needs them: outputs for a whole batch, and gradients. Arrays are contiguous; decay is its
// logarithm. resets, where given, is [batch, time]: not 0 where a token begins anew, from the empty state.
//
// Work is shared out by heads (wkv4: by channels), each of which one thread goes through alone, and sums over a batch
// are taken in its order: the number of threads does not show in any bit.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace rookery {

constexpr int TRAINED_HEAD = 256;  // elements of a head at most, a multiple of 16

struct Extent {
    int batch, time, heads, n;
    const std::uint8_t* resets;
};

// k, v, y [batch, time, channels], decay and bonus [channels], state [batch, 3, channels]: numerator, denominator, and
// their exponent. In the extent n is 1 and heads are channels.
struct Forward4 {
    Extent extent;
    const float *k, *v, *decay, *bonus, *state;
    float *y, *state_out;
};
struct Backward4 {
    Extent extent;
    const float *dy, *dstate_out, *k, *v, *decay, *bonus, *state;
    float *dk, *dv, *ddecay, *dbonus, *dstate;
};

// As wkv7, and bonus [heads, n]; `fixed` where decay is [heads, n] too, the same for all tokens.
struct Forward6 {
    Extent extent;
    const float *r, *k, *v, *decay, *bonus, *state;
    bool fixed;
    float *y, *state_out;
};
struct Backward6 {
    Extent extent;
    const float *dy, *dstate_out, *r, *k, *v, *decay, *bonus, *state;
    bool fixed;
    float *dr, *dk, *dv, *ddecay, *dbonus, *dstate;
};

// y and what is named like it are [batch, time, heads, n]; states are [batch, heads, n, n], key by value.
struct Forward7 {
    Extent extent;
    const float *r, *decay, *k, *v, *a, *b, *state;
    float *y, *state_out;
};
struct Backward7 {
    Extent extent;
    const float *dy, *dstate_out, *r, *decay, *k, *v, *a, *b, *state;
    float *dr, *ddecay, *dk, *dv, *da, *db, *dstate;
};

// On `threads` threads, the caller among them. Throws std::bad_alloc before anything is written.
void run(const Forward4& job, int threads, const Kernels& table = kernels());
void run(const Backward4& job, int threads, const Kernels& table = kernels());
void run(const Forward6& job, int threads, const Kernels& table = kernels());
void run(const Backward6& job, int threads, const Kernels& table = kernels());
void run(const Forward7& job, int threads, const Kernels& table = kernels());
void run(const Backward7& job, int threads, const Kernels& table = kernels());

}  // namespace rookery
