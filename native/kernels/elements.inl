// Element by element, and what the other rooms need of it: exp and loads of a part.
#pragma once

namespace rookery::ROOKERY_ISA {

// 16 lanes, or what is left of a row: the lanes beyond are 0 and not stored.
static inline F take(const float* p, int left) { return left >= 16 ? load(p) : load(p, left); }
static inline void put(float* p, F a, int left) {
    if (left >= 16)
        store(p, a);
    else
        store(p, a, left);
}

// e^x to 1 ulp: 2^n e^r with |r| <= ln(2)/2, where e^r = 1 + r + r^2 P(r) and P is the minimax of degree 4.
static inline F exp(F x) {
    x = max(set(-104.0f), min(set(89.0f), x));  // 0 and infinity beyond; NaN passes
    const F n = round(x * set(1.44269504f));
    F r = fma(n, set(-0.693359375f), x);  // ln 2 in two parts; n times the first, of 10 bits, is exact
    r = fma(n, set(2.12194440e-4f), r);
    F p = fma(set(1.3814541e-3f), r, set(8.3687454e-3f));
    p = fma(p, r, set(4.1668389e-2f));
    p = fma(p, r, set(1.6666521e-1f));
    p = fma(p, r, set(4.9999994e-1f));
    return scale(fma(r * r, p, r) + set(1.0f), n);
}

static inline F sigmoid(F x) { return set(1.0f) / (set(1.0f) + exp(-x)); }

// By a minimax polynomial near 0, which keeps small values exact; by e^2|x| beyond.
static inline F tanh(F x) {
    const F size = abs(x), s = x * x;
    const F far = set(1.0f) - set(2.0f) / (exp(size + size) + set(1.0f));
    F p = fma(set(-5.7170452e-3f), s, set(2.0650588e-2f));
    p = fma(p, s, set(-5.3743497e-2f));
    p = fma(p, s, set(1.3331491e-1f));
    p = fma(p, s, set(-3.3333284e-1f));
    return copysign(select(less(size, set(0.625f)), fma(p * s, x, x), far), x);
}

template <class Op>
static void binary(float* out, Stride so, const float* a, Stride sa, const float* b, Stride sb, int rows, int columns) {
    for (int r = 0; r < rows; ++r, out += so, a += sa, b += sb) {
        int c = 0;
        for (; c + 16 <= columns; c += 16) store(out + c, Op::of(load(a + c), load(b + c)));
        if (c < columns) store(out + c, Op::of(load(a + c, columns - c), load(b + c, columns - c)), columns - c);
    }
}

template <class Op>
static void unary(float* out, Stride so, const float* a, Stride sa, int rows, int columns) {
    for (int r = 0; r < rows; ++r, out += so, a += sa) {
        int c = 0;
        for (; c + 16 <= columns; c += 16) store(out + c, Op::of(load(a + c)));
        if (c < columns) store(out + c, Op::of(load(a + c, columns - c)), columns - c);
    }
}

static void multiply_add(float* out, Stride so, const float* a, Stride sa, const float* b, Stride sb, const float* c,
                         Stride sc, int rows, int columns) {
    for (int r = 0; r < rows; ++r, out += so, a += sa, b += sb, c += sc) {
        int i = 0;
        for (; i + 16 <= columns; i += 16) store(out + i, fma(load(b + i), load(c + i), load(a + i)));
        const int left = columns - i;
        if (left > 0) store(out + i, fma(load(b + i, left), load(c + i, left), load(a + i, left)), left);
    }
}

struct Add {
    static F of(F a, F b) { return a + b; }
};
struct Subtract {
    static F of(F a, F b) { return a - b; }
};
struct Multiply {
    static F of(F a, F b) { return a * b; }
};
struct Divide {
    static F of(F a, F b) { return a / b; }
};
struct Negative {
    static F of(F x) { return -x; }
};
struct Exp {
    static F of(F x) { return exp(x); }
};
struct Tanh {
    static F of(F x) { return tanh(x); }
};
struct Sigmoid {
    static F of(F x) { return sigmoid(x); }
};
struct Silu {
    static F of(F x) { return x * sigmoid(x); }
};
struct Relu {
    static F of(F x) { return max(zero(), x); }
};
struct Square {
    static F of(F x) { return x * x; }
};

static void fill_elements(Kernels& table) {
    table.binary[static_cast<int>(Binary::add)] = binary<Add>;
    table.binary[static_cast<int>(Binary::subtract)] = binary<Subtract>;
    table.binary[static_cast<int>(Binary::multiply)] = binary<Multiply>;
    table.binary[static_cast<int>(Binary::divide)] = binary<Divide>;
    table.unary[static_cast<int>(Unary::negative)] = unary<Negative>;
    table.unary[static_cast<int>(Unary::exp)] = unary<Exp>;
    table.unary[static_cast<int>(Unary::tanh)] = unary<Tanh>;
    table.unary[static_cast<int>(Unary::sigmoid)] = unary<Sigmoid>;
    table.unary[static_cast<int>(Unary::silu)] = unary<Silu>;
    table.unary[static_cast<int>(Unary::relu)] = unary<Relu>;
    table.unary[static_cast<int>(Unary::square)] = unary<Square>;
    table.fma = multiply_add;
}

}  // namespace rookery::ROOKERY_ISA
