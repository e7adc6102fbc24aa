// The recurrences over time. A value's sums run over the keys in one order, so rows may come together or alone.
#pragma once

#include "norms.inl"

namespace rookery::ROOKERY_ISA {

// Blocks of 16 values that share the broadcast of a key: as many as the registers hold.
constexpr int VALUES = REGISTERS >= 32 ? 4 : 1;

// One row's key-side vectors, kept apart: y may be where one of them is.
struct Keys {
    float r[HEAD], w[HEAD], k[HEAD], a[HEAD], b[HEAD];
};

static inline void copy(float* out, const float* x, int n) {
    for (int i = 0; i < n; i += 16) put(out + i, take(x + i, n - i), n - i);
}
static inline void copy_exp(float* out, const float* x, int n) {
    for (int i = 0; i < n; i += 16) put(out + i, exp(take(x + i, n - i)), n - i);
}

// wkv7 for the B blocks of values that begin at `state`, `v` and `y`; the last has `left` lanes.
template <int B>
static inline void row7(float* y, const Keys& keys, const float* v, float* state, int n, int left) {
    const auto lanes = [=](int i) { return i + 1 < B ? 16 : left; };
    F even[B], odd[B], value[B], removed[B];
    for (int i = 0; i < B; ++i) {
        even[i] = odd[i] = zero();
        value[i] = take(v + 16 * i, lanes(i));
    }
    int key = 0;
    for (; key + 2 <= n; key += 2) {
        const float* s = state + static_cast<Stride>(key) * n;
        const F one = set(keys.a[key]), two = set(keys.a[key + 1]);
        for (int i = 0; i < B; ++i) even[i] = fma(one, take(s + 16 * i, lanes(i)), even[i]);
        for (int i = 0; i < B; ++i) odd[i] = fma(two, take(s + n + 16 * i, lanes(i)), odd[i]);
    }
    if (key < n)
        for (int i = 0; i < B; ++i)
            even[i] = fma(set(keys.a[key]), take(state + static_cast<Stride>(key) * n + 16 * i, lanes(i)), even[i]);
    F sum[B];
    for (int i = 0; i < B; ++i) {
        removed[i] = even[i] + odd[i];
        sum[i] = zero();
    }
    for (key = 0; key < n; ++key) {
        float* s = state + static_cast<Stride>(key) * n;
        const F w = set(keys.w[key]), b = set(keys.b[key]), k = set(keys.k[key]), r = set(keys.r[key]);
        for (int i = 0; i < B; ++i) {
            const F now = fma(k, value[i], fma(b, removed[i], w * take(s + 16 * i, lanes(i))));
            put(s + 16 * i, now, lanes(i));
            sum[i] = fma(r, now, sum[i]);
        }
    }
    for (int i = 0; i < B; ++i) put(y + 16 * i, sum[i], lanes(i));
}

// wkv6 for the same; `own` is what the row's own value weighs.
template <int B>
static inline void row6(float* y, const Keys& keys, float own, const float* v, float* state, int n, int left) {
    const auto lanes = [=](int i) { return i + 1 < B ? 16 : left; };
    F value[B], sum[B];
    for (int i = 0; i < B; ++i) {
        value[i] = take(v + 16 * i, lanes(i));
        sum[i] = set(own) * value[i];
    }
    for (int key = 0; key < n; ++key) {
        float* s = state + static_cast<Stride>(key) * n;
        const F w = set(keys.w[key]), k = set(keys.k[key]), r = set(keys.r[key]);
        for (int i = 0; i < B; ++i) {
            const F old = take(s + 16 * i, lanes(i));
            sum[i] = fma(r, old, sum[i]);
            put(s + 16 * i, fma(k, value[i], w * old), lanes(i));
        }
    }
    for (int i = 0; i < B; ++i) put(y + 16 * i, sum[i], lanes(i));
}

// Calls `row(block, begin, left)` for all values of a head, `block` being a number of blocks known to the compiler.
template <int B>
struct Blocks {
    static constexpr int count = B;
};
template <class Row>
static inline void over_values(int n, Row row) {
    constexpr int wide = 16 * VALUES;
    int c = 0;
    for (; c + wide <= n; c += wide) row(Blocks<VALUES>(), c, 16);
    for (; c + 16 <= n; c += 16) row(Blocks<1>(), c, 16);
    if (c < n) row(Blocks<1>(), c, n - c);
}

static void wkv7(float* y, Stride sy, const float* r, Stride sr, const float* decay, Stride sd, const float* k,
                 Stride sk, const float* v, Stride sv, const float* a, Stride sa, const float* b, Stride sb,
                 float* state, int rows, int n) {
    Keys keys;
    for (int t = 0; t < rows; ++t) {
        copy(keys.r, r + t * sr, n);
        copy_exp(keys.w, decay + t * sd, n);
        copy(keys.k, k + t * sk, n);
        copy(keys.a, a + t * sa, n);
        copy(keys.b, b + t * sb, n);
        over_values(n, [&](auto block, int c, int left) {
            row7<decltype(block)::count>(y + t * sy + c, keys, v + t * sv + c, state + c, n, left);
        });
    }
}

static void wkv6(float* y, Stride sy, const float* r, Stride sr, const float* k, Stride sk, const float* v, Stride sv,
                 const float* decay, Stride sd, const float* bonus, float* state, int rows, int n) {
    Keys keys;
    for (int t = 0; t < rows; ++t) {
        copy(keys.r, r + t * sr, n);
        copy(keys.k, k + t * sk, n);
        if (t == 0 || sd != 0) copy_exp(keys.w, decay + t * sd, n);
        const float own = sum_over(n, [&](F s, int i, int left) {
            return fma(take(keys.r + i, left) * take(bonus + i, left), take(keys.k + i, left), s);
        });
        over_values(n, [&](auto block, int c, int left) {
            row6<decltype(block)::count>(y + t * sy + c, keys, own, v + t * sv + c, state + c, n, left);
        });
    }
}

// Each channel alone: 16 of them through all rows, their state in registers.
static void wkv4(float* y, Stride sy, const float* k, Stride sk, const float* v, Stride sv, const float* decay,
                 const float* bonus, float* top, float* below, float* most, int rows, int columns) {
    for (int c = 0; c < columns; c += 16) {
        const int left = columns - c;
        const F w = take(decay + c, left), u = take(bonus + c, left);
        F p = take(top + c, left), q = take(below + c, left), m = take(most + c, left);
        for (int t = 0; t < rows; ++t) {
            const F key = take(k + t * sk + c, left), value = take(v + t * sv + c, left);
            const F now = key + u, high = max(m, now), old = exp(m - high), fresh = exp(now - high);
            put(y + t * sy + c, fma(old, p, fresh * value) / fma(old, q, fresh), left);
            const F aged = m + w;
            m = max(aged, key);
            const F kept = exp(aged - m), added = exp(key - m);
            p = fma(kept, p, added * value);
            q = fma(kept, q, added);
        }
        put(top + c, p, left);
        put(below + c, q, left);
        put(most + c, m, left);
    }
}

static void fill_recurrences(Kernels& table) {
    table.wkv4 = wkv4;
    table.wkv6 = wkv6;
    table.wkv7 = wkv7;
}

}  // namespace rookery::ROOKERY_ISA
