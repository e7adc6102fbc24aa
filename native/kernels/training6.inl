// wkv6's gradients, and wkv5's, whose decay is the same for all tokens.
#pragma once

#include "training_chunks.inl"

namespace rookery::ROOKERY_ISA {

// With S the state before a token, dS' the gradient of the one behind it and e the inner product of v and dy:
//     y = r^T S + (r . u k) v   dr = S dy + u k e   dk = dS' v + u r e   dv = k^T dS' + (r . u k) dy   du = r k e
//     S' = w S + k v            dS = w dS' + r dy   dw = sum of dS' S over values
constexpr int SLAB6 = 8;                         // values; dv of two tokens for a slab fills a vector
constexpr int GROUP6 = REGISTERS >= 32 ? 4 : 2;  // of them that go through a pair of tokens together
constexpr int SWEEP6 = REGISTERS >= 32 ? 16 : 4;  // values that go through the sweep together

struct Scratch6 {
    float *decay, *kept, *first, *gradient, *states, *sums, *own, *error;
    Scratch6(float* scratch, int time, int n) {
        const Stride square = static_cast<Stride>(n) * n;
        decay = scratch;                                       // [time or 1][key]: w
        kept = decay + static_cast<Stride>(time) * n;          // [chunks][value][key]
        first = kept + (time + CHUNK - 1) / CHUNK * square;    // [value][key]: the initial state
        gradient = first + square;                             // [value][key]
        states = gradient + square;                            // [CHUNK][SLAB6][key], before each token
        sums = states + static_cast<Stride>(CHUNK) * SLAB6 * n;  // [CHUNK][3][key]: dr, dk, dw
        own = sums + static_cast<Stride>(CHUNK) * 3 * n;       // [CHUNK]: r . u k
        error = own + CHUNK;                                   // [CHUNK]: e
    }
};
static std::size_t scratch6(int time, int n) {
    const std::size_t square = static_cast<std::size_t>(n) * n, tokens = static_cast<std::size_t>(time);
    return ((tokens + CHUNK - 1) / CHUNK + 2) * square + (tokens + CHUNK * SLAB6 + CHUNK * 3) * n + 2 * CHUNK;
}

// What a token's decays are a step apart.
static inline Stride decay_step(const Backward6& job) { return job.fixed ? 0 : job.extent.n; }

static void sweep6(const Backward6& job, const Unit& unit, const Scratch6& scratch) {
    const int n = job.extent.n;
    const Stride step = decay_step(job);
    transpose(scratch.first, job.state + unit.state, n);
    for (int value = 0; value < n; value += SWEEP6)
        for (int key = 0; key < n; key += 16) {
            const Stride corner = static_cast<Stride>(value) * n + key;
            F now[SWEEP6];
            for (int i = 0; i < SWEEP6; ++i) now[i] = load(scratch.first + corner + static_cast<Stride>(i) * n);
            for (int t = 0; t < job.extent.time; ++t) {
                const Stride at = unit.start + t * unit.row;
                if (fresh(unit.resets, t))
                    for (int i = 0; i < SWEEP6; ++i) now[i] = zero();
                else if (t % CHUNK == 0)
                    for (int i = 0; i < SWEEP6; ++i)
                        store(scratch.kept + t / CHUNK * unit.square + corner + static_cast<Stride>(i) * n, now[i]);
                const F w = load(scratch.decay + t * step + key), k = load(job.k + at + key);
                for (int i = 0; i < SWEEP6; ++i) now[i] = fma(k, set(job.v[at + value + i]), w * now[i]);
            }
        }
}

// The states of a slab before each token of a chunk; those before its first are there.
static inline void again6(const Backward6& job, const Scratch6& scratch, const float* decay, Stride at, Stride row,
                          int value, int count) {
    const int n = job.extent.n;
    const Stride step = decay_step(job);
    for (int key = 0; key < n; key += 16) {
        F now[SLAB6];
        for (int i = 0; i < SLAB6; ++i) now[i] = load(scratch.states + i * n + key);
        for (int t = 0; t + 1 < count; ++t) {
            const F w = load(decay + t * step + key), k = load(job.k + at + t * row + key);
            const float* v = job.v + at + t * row + value;
            for (int i = 0; i < SLAB6; ++i) {
                now[i] = fma(k, set(v[i]), w * now[i]);
                store(scratch.states + ((t + 1) * SLAB6 + i) * n + key, now[i]);
            }
        }
    }
}

// What one token gives a slab; pointers to values are at the slab's first.
struct Token6 {
    const float *r, *w, *k, *v, *dy, *before;
    float *sums, *dv, own;
};

// `Tokens` tokens backwards, the latest first, at one pass over the slab's gradient.
template <int Tokens>
static inline void back6(const Token6* x, float* gradient, int n) {
    F partial[16];
    for (auto& p : partial) p = zero();
    for (int from = 0; from < SLAB6; from += GROUP6) {
        F dv[Tokens][GROUP6];
        for (auto& token : dv)
            for (auto& p : token) p = zero();
        for (int key = 0; key < n; key += 16) {
            F dr[Tokens], dk[Tokens], dw[Tokens];
            for (int t = 0; t < Tokens; ++t) {
                const float* all = x[t].sums + key;
                dr[t] = load(all);
                dk[t] = load(all + n);
                dw[t] = load(all + 2 * n);
            }
            for (int i = 0; i < GROUP6; ++i) {
                float* at = gradient + (from + i) * n + key;
                F d = load(at);
                for (int t = 0; t < Tokens; ++t) {
                    const F before = load(x[t].before + (from + i) * n + key), dy = set(x[t].dy[from + i]);
                    dr[t] = fma(before, dy, dr[t]);
                    dk[t] = fma(d, set(x[t].v[from + i]), dk[t]);
                    dw[t] = fma(d, before, dw[t]);
                    dv[t][i] = fma(d, load(x[t].k + key), dv[t][i]);
                    d = fma(load(x[t].r + key), dy, load(x[t].w + key) * d);
                }
                store(at, d);
            }
            for (int t = 0; t < Tokens; ++t) {
                float* all = x[t].sums + key;
                store(all, dr[t]);
                store(all + n, dk[t]);
                store(all + 2 * n, dw[t]);
            }
        }
        for (int t = 0; t < Tokens; ++t)
            for (int i = 0; i < GROUP6; ++i) partial[t * SLAB6 + from + i] = dv[t][i];
    }
    float both[16];
    store(both, sums(partial));
    for (int t = 0; t < Tokens; ++t)
        for (int i = 0; i < SLAB6; ++i) x[t].dv[i] = both[t * SLAB6 + i] + x[t].own * x[t].dy[i];
}

// The gradients of a chunk's tokens that are sums over values, and what they give bonus and fixed decay.
static void finish6(const Backward6& job, const Unit& unit, const Scratch6& scratch, const float* bonus,
                    const float* decay, float* dbonus, float* ddecay, Stride first, int count) {
    const int n = job.extent.n;
    const Stride step = decay_step(job);
    for (int t = count - 1; t >= 0; --t) {
        const Stride at = first + t * unit.row;
        const float* all = scratch.sums + static_cast<Stride>(t) * 3 * n;
        const F error = set(scratch.error[t]);
        for (int i = 0; i < n; i += 16) {
            const F r = load(job.r + at + i), k = load(job.k + at + i), u = load(bonus + i), rest = u * error;
            store(job.dr + at + i, fma(rest, k, load(all + i)));
            store(job.dk + at + i, fma(rest, r, load(all + n + i)));
            store(dbonus + i, fma(r * k, error, load(dbonus + i)));
            const F dw = load(all + 2 * n + i) * load(decay + t * step + i);
            if (job.fixed)
                store(ddecay + i, load(ddecay + i) + dw);
            else
                store(job.ddecay + at + i, dw);
        }
    }
}

static void wkv6_backward(const Backward6& job, int index, float* memory) {
    const int n = job.extent.n;
    const Unit unit(job.extent, index);
    const Scratch6 scratch(memory, job.extent.time, n);
    const Stride step = decay_step(job), slab = static_cast<Stride>(SLAB6) * n;
    const Stride head = static_cast<Stride>(index % job.extent.heads) * n;
    const float* bonus = job.bonus + head;
    float *dbonus = job.dbonus + static_cast<Stride>(index) * n, *ddecay = job.ddecay + static_cast<Stride>(index) * n;
    if (job.fixed)
        copy_exp(scratch.decay, job.decay + head, n);
    else
        for (int t = 0; t < job.extent.time; ++t)
            copy_exp(scratch.decay + t * step, job.decay + unit.start + t * unit.row, n);
    sweep6(job, unit, scratch);
    transpose(scratch.gradient, job.dstate_out + unit.state, n);
    clear(dbonus, n);
    if (job.fixed) clear(ddecay, n);

    for (int end = job.extent.time, begin; end > 0; end = begin) {
        begin = chunk_begin(unit.resets, end);
        const int count = end - begin;
        const Stride first = unit.start + begin * unit.row;
        const float* decay = scratch.decay + begin * step;
        clear(scratch.sums, static_cast<Stride>(count) * 3 * n);
        for (int t = 0; t < count; ++t) {
            const Stride at = first + t * unit.row;
            scratch.error[t] = inner(job.v + at, job.dy + at, n);
            scratch.own[t] = sum_over(n, [&](F s, int i, int) {
                return fma(load(job.r + at + i) * load(bonus + i), load(job.k + at + i), s);
            });
        }
        for (int value = 0; value < n; value += SLAB6) {
            const Stride corner = static_cast<Stride>(value) * n;
            if (fresh(unit.resets, begin))
                clear(scratch.states, slab);
            else
                move(scratch.states, scratch.kept + begin / CHUNK * unit.square + corner, slab);
            again6(job, scratch, decay, first, unit.row, value, count);
            const auto token = [&](int t) -> Token6 {
                const Stride at = first + t * unit.row;
                return {job.r + at, decay + t * step, job.k + at, job.v + at + value, job.dy + at + value,
                        scratch.states + t * slab, scratch.sums + static_cast<Stride>(t) * 3 * n,
                        job.dv + at + value, scratch.own[t]};
            };
            int t = count - 1;
            for (; t > 0; t -= 2) {
                const Token6 pair[2] = {token(t), token(t - 1)};
                back6<2>(pair, scratch.gradient + corner, n);
            }
            if (t == 0) {
                const Token6 last = token(0);
                back6<1>(&last, scratch.gradient + corner, n);
            }
        }
        finish6(job, unit, scratch, bonus, decay, dbonus, ddecay, first, count);
        if (fresh(unit.resets, begin)) clear(scratch.gradient, unit.square);
    }
    transpose(job.dstate + unit.state, scratch.gradient, n);
}

}  // namespace rookery::ROOKERY_ISA
