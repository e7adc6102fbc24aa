// wkv7's gradients.
#pragma once

#include "training_chunks.inl"

namespace rookery::ROOKERY_ISA {

// With S the state before a token, S' behind it and dS' the gradient there, r dy^T included:
//     u = a^T S             du = b^T dS'       dr = S' dy    db = dS' u    da = S du
//     S' = w S + b u + k v  dS = w dS' + a du  dk = dS' v    dv = k^T dS'  dw = sum of dS' S over values
constexpr int SLAB7 = 8;                         // values; du and dv of a slab fill a vector
constexpr int GROUP7 = REGISTERS >= 32 ? 8 : 2;  // of them whose sums over keys the registers hold

struct Scratch7 {
    float *kept, *removed, *state, *gradient, *states, *decay, *sums;
    Scratch7(float* scratch, int time, int n) {
        const Stride square = static_cast<Stride>(n) * n;
        kept = scratch;                                            // [chunks][value][key]
        removed = kept + (time + CHUNK - 1) / CHUNK * square;      // [time][value]: u
        state = removed + static_cast<Stride>(time) * n;           // [key][value]
        gradient = state + square;                                 // [value][key]
        states = gradient + square;                                // [CHUNK + 1][SLAB7][key]
        decay = states + static_cast<Stride>(CHUNK + 1) * SLAB7 * n;  // [CHUNK][key]: w
        sums = decay + static_cast<Stride>(CHUNK) * n;             // [CHUNK][5][key]: dr, dk, db, dw, da
    }
};
static std::size_t scratch7(int time, int n) {
    const std::size_t square = static_cast<std::size_t>(n) * n, tokens = static_cast<std::size_t>(time);
    return ((tokens + CHUNK - 1) / CHUNK + 2) * square + (tokens + (CHUNK + 1) * SLAB7 + CHUNK + CHUNK * 5) * n;
}

// One token of the sweep for B blocks of values.
template <int B>
static inline void advance7(float* removed, const Keys& keys, const float* v, float* state, int n) {
    F even[B], odd[B], value[B];
    for (int i = 0; i < B; ++i) {
        even[i] = odd[i] = zero();
        value[i] = load(v + 16 * i);
    }
    for (int key = 0; key < n; key += 2) {
        const float* s = state + static_cast<Stride>(key) * n;
        const F one = set(keys.a[key]), two = set(keys.a[key + 1]);
        for (int i = 0; i < B; ++i) even[i] = fma(one, load(s + 16 * i), even[i]);
        for (int i = 0; i < B; ++i) odd[i] = fma(two, load(s + n + 16 * i), odd[i]);
    }
    for (int i = 0; i < B; ++i) {
        even[i] = even[i] + odd[i];
        store(removed + 16 * i, even[i]);
    }
    for (int key = 0; key < n; ++key) {
        float* s = state + static_cast<Stride>(key) * n;
        const F w = set(keys.w[key]), b = set(keys.b[key]), k = set(keys.k[key]);
        for (int i = 0; i < B; ++i) store(s + 16 * i, fma(k, value[i], fma(b, even[i], w * load(s + 16 * i))));
    }
}

static void sweep7(const Backward7& job, const Unit& unit, const Scratch7& scratch) {
    const int n = job.extent.n;
    Keys keys;
    move(scratch.state, job.state + unit.state, unit.square);
    for (int t = 0; t < job.extent.time; ++t) {
        const Stride at = unit.start + t * unit.row;
        if (fresh(unit.resets, t))
            clear(scratch.state, unit.square);
        else if (t % CHUNK == 0)
            transpose(scratch.kept + t / CHUNK * unit.square, scratch.state, n);
        copy_exp(keys.w, job.decay + at, n);
        copy(keys.k, job.k + at, n);
        copy(keys.a, job.a + at, n);
        copy(keys.b, job.b + at, n);
        over_values(n, [&](auto block, int c, int) {
            advance7<decltype(block)::count>(scratch.removed + static_cast<Stride>(t) * n + c, keys, job.v + at + c,
                                             scratch.state + c, n);
        });
    }
}

// The states of a slab behind each token of a chunk, from the one before it.
static inline void again7(const Backward7& job, const Scratch7& scratch, const float* removed, Stride at, Stride row,
                          int first, int count) {
    const int n = job.extent.n;
    for (int key = 0; key < n; key += 16) {
        float* s = scratch.states + key;
        for (int from = 0; from < SLAB7; from += GROUP7) {
            F now[GROUP7];
            for (int i = 0; i < GROUP7; ++i) now[i] = load(s + (from + i) * n);
            for (int t = 0; t < count; ++t) {
                const F w = load(scratch.decay + t * n + key);
                const F b = load(job.b + at + t * row + key), k = load(job.k + at + t * row + key);
                const float *u = removed + t * n + first + from, *v = job.v + at + t * row + first + from;
                for (int i = 0; i < GROUP7; ++i) {
                    now[i] = fma(k, set(v[i]), fma(b, set(u[i]), w * now[i]));
                    store(s + ((t + 1) * SLAB7 + from + i) * n, now[i]);
                }
            }
        }
    }
}

// One token backwards for a slab; pointers are at the token, and at the slab's first value where that is meant.
struct Token7 {
    const float *r, *w, *k, *a, *b, *v, *dy, *removed, *before, *behind;
    float *gradient, *sums, *dv;
};
static inline void back7(const Token7& x, int n) {
    F partial[2 * SLAB7];
    for (int from = 0; from < SLAB7; from += GROUP7) {
        F dv[GROUP7], du[GROUP7];
        for (int i = 0; i < GROUP7; ++i) dv[i] = du[i] = zero();
        for (int key = 0; key < n; key += 16) {
            const F r = load(x.r + key), k = load(x.k + key), b = load(x.b + key);
            for (int i = 0; i < GROUP7; ++i) {
                float* at = x.gradient + (from + i) * n + key;
                const F d = fma(r, set(x.dy[from + i]), load(at));
                store(at, d);
                dv[i] = fma(d, k, dv[i]);
                du[i] = fma(d, b, du[i]);
            }
        }
        for (int i = 0; i < GROUP7; ++i) {
            partial[from + i] = dv[i];
            partial[SLAB7 + from + i] = du[i];
        }
    }
    float both[2 * SLAB7];
    store(both, sums(partial));
    for (int i = 0; i < SLAB7; ++i) x.dv[i] = both[i];
    const float* removed = both + SLAB7;
    for (int key = 0; key < n; key += 16) {
        const F w = load(x.w + key), a = load(x.a + key);
        float* all = x.sums + key;
        F dr = load(all), dk = load(all + n), db = load(all + 2 * n), dw = load(all + 3 * n), da = load(all + 4 * n);
        for (int i = 0; i < SLAB7; ++i) {
            float* at = x.gradient + i * n + key;
            const F d = load(at), before = load(x.before + i * n + key), du = set(removed[i]);
            dr = fma(load(x.behind + i * n + key), set(x.dy[i]), dr);
            dk = fma(d, set(x.v[i]), dk);
            db = fma(d, set(x.removed[i]), db);
            dw = fma(d, before, dw);
            da = fma(before, du, da);
            store(at, fma(a, du, w * d));
        }
        store(all, dr);
        store(all + n, dk);
        store(all + 2 * n, db);
        store(all + 3 * n, dw);
        store(all + 4 * n, da);
    }
}

static void chunk7(const Backward7& job, const Unit& unit, const Scratch7& scratch, int begin, int end) {
    const int n = job.extent.n, count = end - begin;
    const Stride first = unit.start + begin * unit.row, slab = static_cast<Stride>(SLAB7) * n;
    const float* removed = scratch.removed + static_cast<Stride>(begin) * n;
    for (int t = 0; t < count; ++t) copy_exp(scratch.decay + t * n, job.decay + first + t * unit.row, n);
    clear(scratch.sums, static_cast<Stride>(count) * 5 * n);
    for (int value = 0; value < n; value += SLAB7) {
        if (fresh(unit.resets, begin))
            clear(scratch.states, slab);
        else
            move(scratch.states, scratch.kept + begin / CHUNK * unit.square + static_cast<Stride>(value) * n, slab);
        again7(job, scratch, removed, first, unit.row, value, count);
        for (int t = count - 1; t >= 0; --t) {
            const Stride at = first + t * unit.row;
            back7({job.r + at, scratch.decay + t * n, job.k + at, job.a + at, job.b + at, job.v + at + value,
                   job.dy + at + value, removed + t * n + value, scratch.states + t * slab,
                   scratch.states + (t + 1) * slab, scratch.gradient + static_cast<Stride>(value) * n,
                   scratch.sums + static_cast<Stride>(t) * 5 * n, job.dv + at + value},
                  n);
        }
    }
    for (int t = 0; t < count; ++t) {
        const Stride at = first + t * unit.row;
        const float* all = scratch.sums + static_cast<Stride>(t) * 5 * n;
        move(job.dr + at, all, n);
        move(job.dk + at, all + n, n);
        move(job.db + at, all + 2 * n, n);
        for (int i = 0; i < n; i += 16)
            store(job.ddecay + at + i, load(all + 3 * n + i) * load(scratch.decay + t * n + i));
        move(job.da + at, all + 4 * n, n);
    }
}

static void wkv7_backward(const Backward7& job, int index, float* memory) {
    const int n = job.extent.n;
    const Unit unit(job.extent, index);
    const Scratch7 scratch(memory, job.extent.time, n);
    sweep7(job, unit, scratch);
    transpose(scratch.gradient, job.dstate_out + unit.state, n);
    for (int end = job.extent.time; end > 0;) {
        const int begin = chunk_begin(unit.resets, end);
        chunk7(job, unit, scratch, begin, end);
        if (fresh(unit.resets, begin)) clear(scratch.gradient, unit.square);
        end = begin;
    }
    transpose(job.dstate + unit.state, scratch.gradient, n);
}

}  // namespace rookery::ROOKERY_ISA
