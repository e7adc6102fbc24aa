// Sums along a row or a head, in one order for each length, and the norms made of them.
#pragma once

#include "elements.inl"

namespace rookery::ROOKERY_ISA {

// Only the first n lanes of a, the others 0.
static const float LANES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static inline F keep(F a, int n) { return select(less(load(LANES), set(static_cast<float>(n))), a, zero()); }

// Sum over n elements by four accumulators; `add(s, i, left)` adds to s the terms of elements i .. i + 15.
template <class Term>
static inline float sum_over(int n, Term add) {
    F s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        s0 = add(s0, i, 16);
        s1 = add(s1, i + 16, 16);
        s2 = add(s2, i + 32, 16);
        s3 = add(s3, i + 48, 16);
    }
    for (; i + 16 <= n; i += 16) s0 = add(s0, i, 16);
    if (i < n) s1 = add(s1, i, n - i);
    return sum((s0 + s1) + (s2 + s3));
}

static inline float inner(const float* a, const float* b, int n) {
    return sum_over(n, [=](F s, int i, int left) { return fma(take(a + i, left), take(b + i, left), s); });
}

// (x - mean) / sqrt(var + eps) * weight + bias over n elements.
static inline void norm(float* out, const float* x, const float* weight, const float* bias, float eps, int n) {
    const float count = static_cast<float>(n);
    const F mean = set(sum_over(n, [=](F s, int i, int left) { return s + take(x + i, left); }) / count);
    const float squares = sum_over(n, [=](F s, int i, int left) {
        const F d = take(x + i, left) - mean, kept = left >= 16 ? d : keep(d, left);
        return fma(kept, kept, s);
    });
    const F factor = set(1.0f) / sqrt(set(squares / count + eps));
    int i = 0;
    for (; i + 16 <= n; i += 16)
        store(out + i, fma((load(x + i) - mean) * factor, load(weight + i), load(bias + i)));
    const int left = n - i;
    if (left > 0)
        store(out + i, fma((load(x + i, left) - mean) * factor, load(weight + i, left), load(bias + i, left)), left);
}

static void layer_norm(float* out, Stride so, const float* x, Stride sx, const float* weight, const float* bias,
                       float eps, int rows, int columns) {
    for (int r = 0; r < rows; ++r, out += so, x += sx) norm(out, x, weight, bias, eps, columns);
}

static void group_norm(float* out, Stride so, const float* x, Stride sx, const float* weight, const float* bias,
                       float eps, int rows, int columns, int n) {
    for (int r = 0; r < rows; ++r, out += so, x += sx)
        for (int c = 0; c < columns; c += n) norm(out + c, x + c, weight + c, bias + c, eps, n);
}

static void normalize(float* out, Stride so, const float* x, Stride sx, int rows, int columns, int n) {
    for (int r = 0; r < rows; ++r, out += so, x += sx)
        for (int c = 0; c < columns; c += n) {
            const F factor = set(1.0f) / max(set(1e-12f), sqrt(set(inner(x + c, x + c, n))));
            for (int i = 0; i < n; i += 16) put(out + c + i, take(x + c + i, n - i) * factor, n - i);
        }
}

static void head_dot(float* out, Stride so, const float* a, Stride sa, const float* b, Stride sb, int rows,
                     int columns, int n) {
    for (int r = 0; r < rows; ++r, out += so, a += sa, b += sb)
        for (int c = 0; c < columns; c += n) {
            const F product = set(inner(a + c, b + c, n));
            for (int i = 0; i < n; i += 16) put(out + c + i, product, n - i);
        }
}

static void fill_norms(Kernels& table) {
    table.layer_norm = layer_norm;
    table.group_norm = group_norm;
    table.normalize = normalize;
    table.dot = head_dot;
}

}  // namespace rookery::ROOKERY_ISA
