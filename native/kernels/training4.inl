// wkv4's gradients: 16 channels of one sequence, their states of all tokens kept.
//
// A state is (p, q) e^m, and the outputs do not depend on how it is parted, so that gradients of p and q are taken with
// the exponents as constants. What a caller makes of the last exponent beyond that goes back to the key, or the decays,
// that it was the largest of.
#pragma once

#include "training_chunks.inl"

namespace rookery::ROOKERY_ISA {

static std::size_t scratch4(int time) { return static_cast<std::size_t>(time) * 3 * 16; }

struct Slice4 {
    F p, q, m;
};
static inline Slice4 load4(const float* at, Stride apart, int left) {
    return {take(at, left), take(at + apart, left), take(at + 2 * apart, left)};
}
static inline void store4(float* at, Stride apart, const Slice4& s, int left) {
    put(at, s.p, left);
    put(at + apart, s.q, left);
    put(at + 2 * apart, s.m, left);
}
static inline Slice4 advance4(const Slice4& s, F w, F k, F v) {
    const F aged = s.m + w, m = max(aged, k), kept = exp(aged - m), added = exp(k - m);
    return {fma(kept, s.p, added * v), fma(kept, s.q, added), m};
}

static void wkv4_backward(const Backward4& job, int index, float* before) {
    const Stride row = job.extent.heads;
    const int slices = (job.extent.heads + 15) / 16, sequence = index / slices, c = index % slices * 16;
    const int left = job.extent.heads - c, time = job.extent.time;
    const Stride start = static_cast<Stride>(sequence) * time * row + c, state = sequence * 3 * row + c;
    const std::uint8_t* resets = job.extent.resets;
    if (resets != nullptr) resets += static_cast<Stride>(sequence) * time;
    const F w = take(job.decay + c, left), u = take(job.bonus + c, left);

    Slice4 s = load4(job.state + state, row, left);
    for (int t = 0; t < time; ++t) {
        if (fresh(resets, t)) s = {zero(), zero(), set(-1e30f)};
        store4(before + static_cast<Stride>(t) * 48, 16, s, 16);
        s = advance4(s, w, take(job.k + start + t * row, left), take(job.v + start + t * row, left));
    }

    Slice4 d = load4(job.dstate_out + state, row, left);
    d.m = d.m - fma(d.p, s.p, d.q * s.q);  // of the exponent, were p e^m and q e^m to stay
    F dw = zero(), du = zero();
    for (int t = time - 1; t >= 0; --t) {
        const Stride at = start + t * row;
        const F k = take(job.k + at, left), v = take(job.v + at, left), dy = take(job.dy + at, left);
        s = load4(before + static_cast<Stride>(t) * 48, 16, 16);
        const F aged = s.m + w, next = max(aged, k), kept = exp(aged - next), added = exp(k - next);
        const F now = k + u, high = max(s.m, now), old = exp(s.m - high), own = exp(now - high);
        const F below = fma(old, s.q, own), y = fma(old, s.p, own * v) / below, share = dy / below;
        const F through = own * share * (v - y);
        const M older = less(aged, k);
        const F dm_key = select(older, d.m, zero()), dm_old = select(older, zero(), d.m);
        put(job.dk + at, fma(added, fma(v, d.p, d.q), through + dm_key), left);
        put(job.dv + at, fma(added, d.p, own * share), left);
        dw = fma(kept, fma(s.p, d.p, s.q * d.q), dw) + dm_old;
        du = du + through;
        d.p = fma(kept, d.p, old * share);
        d.q = fma(kept, d.q, -(old * share * y));
        d.m = dm_old;
        if (fresh(resets, t)) d = {zero(), zero(), zero()};
    }
    d.m = d.m + fma(d.p, s.p, d.q * s.q);
    if (fresh(resets, 0)) d.m = zero();
    store4(job.dstate + state, row, d, left);
    put(job.ddecay + sequence * row + c, dw, left);
    put(job.dbonus + sequence * row + c, du, left);
}

}  // namespace rookery::ROOKERY_ISA
