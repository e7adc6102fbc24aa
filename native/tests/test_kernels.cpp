// Every kernel but the linear ones, on every instruction set that runs here, against plain loops over doubles: all short
// lengths, rows that end where memory ends, strides, operands in place, extremes, and the law of rows to the bit.
#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "rows.h"

using namespace rookery;

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NAN_ = std::numeric_limits<float>::quiet_NaN();

std::vector<int> lengths() {
    std::vector<int> all;
    for (int n = 0; n <= 2 * 16 + 3; ++n) all.push_back(n);
    for (int n : {63, 64, 65, 100, 128, 261, 2048}) all.push_back(n);
    return all;
}

using Loop = std::function<double(double, double, double)>;

// `call(out, a, b, c, rows, columns)` for all lengths, strides and in place; wanted is `loop` within
// absolute + relative * |wanted| of double arithmetic.
template <class Call>
void elementwise(const char* what, Call call, const Loop& loop, double relative, double absolute, float low, float high) {
    for (const int columns : lengths())
        for (const int rows : {0, 3})
            for (const int extra : {0, 1, 16}) {
                const Stride s = columns + extra;
                const Rows a(rows, columns, s, low, high), b(rows, columns, extra == 1 ? 0 : s, 0.5f, 2),
                    c(rows, columns, extra == 16 ? 0 : s + 3);
                Rows out = Rows::out(rows, columns, s + 2);
                call(out.data(), out.stride(), a, b, c, rows, columns);
                out.untouched_outside();
                for (int r = 0; r < rows; ++r)
                    for (int i = 0; i < columns; ++i) {
                        const double wanted = loop(a.at(r, i), b.at(r, i), c.at(r, i));
                        NEAR(out.at(r, i), wanted, absolute + relative * std::fabs(wanted), what, i);
                    }
                Rows place(a);  // the first operand overwritten
                call(place.data(), place.stride(), place, b, c, rows, columns);
                place.untouched_outside();
                for (int r = 0; r < rows; ++r)
                    CHECK(columns == 0 || std::memcmp(place.row(r), out.row(r), 4 * columns) == 0);
                Rows cut = Rows::out(rows, columns, s + 2);  // row by row, columns in pieces of 16
                for (int r = 0; r < rows; ++r)
                    for (int i = 0; i < columns; i += 16) {
                        const auto shifted = [&](const Rows& x) { return x.row(x.stride() == 0 ? 0 : r) + i; };
                        struct View {
                            float* p;
                            float* data() const { return p; }
                            Stride stride() const { return 0; }
                        };
                        call(shifted(cut), 0, View{shifted(a)}, View{shifted(b)}, View{shifted(c)}, 1,
                             std::min(16, columns - i));
                    }
                CHECK(cut.same(out));
            }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void elements() {
    const auto binary = [](Binary op) {
        return [op](float* out, Stride so, const auto& a, const auto& b, const auto&, int rows, int columns) {
            K->binary[static_cast<int>(op)](out, so, a.data(), a.stride(), b.data(), b.stride(), rows, columns);
        };
    };
    const auto unary = [](Unary op) {
        return [op](float* out, Stride so, const auto& a, const auto&, const auto&, int rows, int columns) {
            K->unary[static_cast<int>(op)](out, so, a.data(), a.stride(), rows, columns);
        };
    };
    const double half = 6e-8;  // half a unit in the last place: one rounding
    elementwise("add", binary(Binary::add), [](double a, double b, double) { return a + b; }, half, 0, -2, 2);
    elementwise("subtract", binary(Binary::subtract), [](double a, double b, double) { return a - b; }, half, 0, -2, 2);
    elementwise("multiply", binary(Binary::multiply), [](double a, double b, double) { return a * b; }, half, 0, -2, 2);
    elementwise("divide", binary(Binary::divide), [](double a, double b, double) { return a / b; }, half, 0, -2, 2);
    elementwise("negative", unary(Unary::negative), [](double a, double, double) { return -a; }, 0, 0, -2, 2);
    elementwise("relu", unary(Unary::relu), [](double a, double, double) { return a > 0 ? a : 0; }, 0, 0, -2, 2);
    elementwise("square", unary(Unary::square), [](double a, double, double) { return a * a; }, half, 0, -2, 2);
    elementwise("exp", unary(Unary::exp), [](double a, double, double) { return std::exp(a); }, 2.4e-7, 0, -80, 80);
    elementwise("tanh", unary(Unary::tanh), [](double a, double, double) { return std::tanh(a); }, 0, 2e-7, -4, 4);
    elementwise("sigmoid", unary(Unary::sigmoid), [](double a, double, double) { return sigmoid(a); }, 0, 2e-7, -9, 9);
    elementwise("silu", unary(Unary::silu), [](double a, double, double) { return a * sigmoid(a); }, 3e-7, 1e-7, -9, 9);
    elementwise(
        "fma",
        [](float* out, Stride so, const auto& a, const auto& b, const auto& c, int rows, int columns) {
            K->fma(out, so, a.data(), a.stride(), b.data(), b.stride(), c.data(), c.stride(), rows, columns);
        },
        [](double a, double b, double c) { return a + b * c; }, half, 3e-7, -2, 2);
}

float one(Unary op, float x) {
    float out;
    K->unary[static_cast<int>(op)](&out, 1, &x, 1, 1, 1);
    return out;
}

void extremes() {
    const float tiny = std::numeric_limits<float>::denorm_min(), most = std::numeric_limits<float>::max();
    for (const float x : {0.0f, -0.0f, tiny, -tiny, 1e-39f, -1e-39f}) {
        CHECK(one(Unary::exp, x) == 1);
        CHECK(one(Unary::sigmoid, x) == 0.5f);
        CHECK(one(Unary::tanh, x) == x);
        CHECK(std::fabs(one(Unary::silu, x)) <= tiny || x * 0.5f == one(Unary::silu, x));
    }
    CHECK(std::signbit(one(Unary::tanh, -0.0f)));
    CHECK(one(Unary::negative, 0.0f) == 0 && std::signbit(one(Unary::negative, 0.0f)));
    for (const float x : {100.0f, 1e5f, 1e30f, most, INF}) {
        CHECK(one(Unary::exp, x) == INF);
        CHECK(one(Unary::exp, x == 100.0f ? -104.0f : -x) == 0);
        CHECK(one(Unary::tanh, x) == 1 && one(Unary::tanh, -x) == -1);
        CHECK(one(Unary::sigmoid, x) == 1 && one(Unary::sigmoid, -x) == 0);
        CHECK(one(Unary::silu, x) == x);
        CHECK(x == INF || one(Unary::silu, -x) == 0);
        CHECK(one(Unary::relu, x) == x && one(Unary::relu, -x) == 0);
    }
    CHECK(one(Unary::exp, 88.72f) < INF && one(Unary::exp, 88.73f) == INF);
    CHECK(one(Unary::exp, -103.0f) == tiny);
    for (const Unary op : {Unary::negative, Unary::exp, Unary::tanh, Unary::sigmoid, Unary::silu, Unary::relu,
                           Unary::square})
        CHECK(std::isnan(one(op, NAN_)));
}

// The greatest errors over a dense sweep, said and bounded. In units in the last place of the exact result.
void accuracy() {
    const int n = 1 << 19;
    std::vector<float> x(n), y(n);
    const auto sweep = [&](Unary op, float low, float high, double (*exact)(double), double& ulps, double& absolute) {
        ulps = absolute = 0;
        for (int i = 0; i < n; ++i) x[i] = low + (high - low) * static_cast<float>(i) / n;
        K->unary[static_cast<int>(op)](y.data(), n, x.data(), n, 1, n);
        for (int i = 0; i < n; ++i) {
            const double wanted = exact(x[i]), error = std::fabs(y[i] - wanted);
            const double unit = std::ldexp(1.0, std::max(std::ilogb(wanted == 0 ? 1e-300 : wanted), -126) - 23);
            ulps = std::max(ulps, error / unit);
            absolute = std::max(absolute, error);
        }
    };
    double e, t, s, any, abs_t, abs_s;
    sweep(Unary::exp, -103.5f, 88.7f, [](double v) { return std::exp(v); }, e, any);
    sweep(Unary::tanh, -10, 10, [](double v) { return std::tanh(v); }, t, abs_t);
    sweep(Unary::sigmoid, -80, 80, sigmoid, s, abs_s);
    std::printf("%s: exp %.2f ulp; tanh %.2f ulp, %.1e; sigmoid %.2f ulp, %.1e\n", K->name, e, t, abs_t, s, abs_s);
    CHECK(e <= 2 && t <= 4 && abs_t <= 2e-7 && s <= 4 && abs_s <= 2e-7);
}

void norm_rows(int columns, int n, bool grouped) {
    const int rows = 3;
    const float eps = 1e-5f;
    const Rows x(rows, columns, columns + 3, -1, 3), w(1, columns, columns), b(1, columns, columns);
    Rows out = Rows::out(rows, columns, columns + 1);
    const auto call = [&](float* o, Stride so, const float* p, Stride sp, int count) {
        if (grouped)
            K->group_norm(o, so, p, sp, w.data(), b.data(), eps, count, columns, n);
        else
            K->layer_norm(o, so, p, sp, w.data(), b.data(), eps, count, columns);
    };
    call(out.data(), out.stride(), x.data(), x.stride(), rows);
    out.untouched_outside();
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < columns; h += n) {
            double mean = 0, variance = 0;
            for (int i = h; i < h + n; ++i) mean += x.at(r, i) / static_cast<double>(n);
            for (int i = h; i < h + n; ++i) variance += (x.at(r, i) - mean) * (x.at(r, i) - mean) / n;
            for (int i = h; i < h + n; ++i)
                NEAR(out.at(r, i), (x.at(r, i) - mean) / std::sqrt(variance + eps) * w.at(0, i) + b.at(0, i),
                     1e-5 + 3e-6 / std::sqrt(variance + eps), "norm", i);
        }
    Rows alone(x);  // in place and row by row
    for (int r = 0; r < rows; ++r) call(alone.row(r), 0, alone.row(r), 0, 1);
    alone.untouched_outside();
    for (int r = 0; r < rows; ++r) CHECK(std::memcmp(alone.row(r), out.row(r), 4 * columns) == 0);
}

void head_sums(int columns, int n) {
    const int rows = 2;
    const Rows x(rows, columns, columns + 3), y(rows, columns, columns);
    Rows out = Rows::out(rows, columns, columns + 1), product = Rows::out(rows, columns, columns);
    K->normalize(out.data(), out.stride(), x.data(), x.stride(), rows, columns, n);
    K->dot(product.data(), product.stride(), x.data(), x.stride(), y.data(), y.stride(), rows, columns, n);
    out.untouched_outside();
    product.untouched_outside();
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < columns; h += n) {
            double squares = 0, inner = 0;
            for (int i = h; i < h + n; ++i) {
                squares += static_cast<double>(x.at(r, i)) * x.at(r, i);
                inner += static_cast<double>(x.at(r, i)) * y.at(r, i);
            }
            for (int i = h; i < h + n; ++i) {
                NEAR(out.at(r, i), x.at(r, i) / std::max(std::sqrt(squares), 1e-12), 4e-7, "normalize", i);
                NEAR(product.at(r, i), inner, 1e-6 * n, "dot", i);
            }
        }
    Rows alone(x), second(y);
    for (int r = 0; r < rows; ++r) {
        K->dot(second.row(r), 0, x.row(r), 0, second.row(r), 0, 1, columns, n);
        K->normalize(alone.row(r), 0, alone.row(r), 0, 1, columns, n);
        CHECK(std::memcmp(alone.row(r), out.row(r), 4 * columns) == 0);
        CHECK(std::memcmp(second.row(r), product.row(r), 4 * columns) == 0);
    }
}

void norms() {
    for (const int n : lengths()) {
        norm_rows(n, std::max(n, 1), false);
        if (n == 0) continue;
        for (const int heads : {1, 3}) {
            norm_rows(n * heads, n, true);
            head_sums(n * heads, n);
        }
    }
    const std::vector<float> zeros(20, 0.0f);
    std::vector<float> out(20, 1.0f);
    K->normalize(out.data(), 20, zeros.data(), 20, 1, 20, 20);
    CHECK(out == zeros);
    const std::vector<float> faint(20, 1e-14f);  // its norm is below 1e-12
    K->normalize(out.data(), 20, faint.data(), 20, 1, 20, 20);
    NEAR(out[7], 1e-2, 1e-8, "normalize", 7);
    std::vector<float> bad(20, 1.0f);
    bad[3] = NAN_;
    K->normalize(out.data(), 20, bad.data(), 20, 1, 20, 20);
    for (const float x : out) CHECK(std::isnan(x));
}

void wkv4(int columns) {
    const int rows = 5;
    const Rows k(rows, columns, columns + 3, -3, 3), v(rows, columns, columns), decay(1, columns, columns, -2, -0.1f),
        bonus(1, columns, columns), state(3, columns, columns + 1, 0.1f, 1);
    Rows together(state), alone(state), y = Rows::out(rows, columns, columns + 2), place(v);
    const auto call = [&](float* out, Stride so, Rows& s, const float* value, Stride sv, int first, int count) {
        K->wkv4(out, so, k.row(first), k.stride(), value, sv, decay.data(), bonus.data(), s.row(0), s.row(1), s.row(2),
                count, columns);
    };
    call(y.data(), y.stride(), together, v.data(), v.stride(), 0, rows);
    y.untouched_outside();
    together.untouched_outside();
    for (int c = 0; c < columns; ++c) {
        double a = state.at(0, c), b = state.at(1, c), m = state.at(2, c);
        for (int r = 0; r < rows; ++r) {
            const double key = k.at(r, c), value = v.at(r, c), now = std::exp(bonus.at(0, c) + key - m);
            NEAR(y.at(r, c), (a + now * value) / (b + now), 3e-6, "wkv4", c);
            const double q = std::max(m + decay.at(0, c), key), old = std::exp(m + decay.at(0, c) - q);
            a = old * a + std::exp(key - q) * value;
            b = old * b + std::exp(key - q);
            m = q;
        }
        NEAR(together.at(0, c), a, 1e-5, "wkv4 top", c);
        NEAR(together.at(1, c), b, 1e-5, "wkv4 below", c);
        NEAR(together.at(2, c), m, 1e-6, "wkv4 most", c);
    }
    for (int r = 0; r < rows; ++r) call(place.row(r), 0, alone, place.row(r), 0, r, 1);
    CHECK(alone.same(together));
    for (int r = 0; r < rows; ++r) CHECK(columns == 0 || std::memcmp(place.row(r), y.row(r), 4 * columns) == 0);
}

// A fresh state as its file has it: nothing yet, at an exponent far below all.
void wkv4_from_nothing() {
    for (const float start : {-1e38f, -1e30f}) {
        float top = 0, below = 0, most = start, y = 0;
        const float k = 0.5f, v = -1.25f, decay = -0.3f, bonus = 0.1f;
        K->wkv4(&y, 1, &k, 1, &v, 1, &decay, &bonus, &top, &below, &most, 1, 1);
        CHECK(y == v && top == v && below == 1 && most == k);
    }
}

struct Head {
    int rows, n;
    Rows r, k, v, decay, a, b, bonus, state;
    Head(int rows_, int n_, bool one_decay)
        : rows(rows_), n(n_), r(rows, n, n + 1), k(rows, n, n), v(rows, n, n + 3),
          decay(rows, n, one_decay ? 0 : n + 16, -2, -0.01f), a(rows, n, n, -0.3f, 0.3f), b(rows, n, n + 2, -0.3f, 0.3f),
          bonus(1, n, n), state(n, n, n) {}

    void call(bool seven, float* y, Stride sy, const Rows& r_, const Rows& v_, Rows& s, int first, int count) const {
        const float* w = decay.row(first);
        if (seven)
            K->wkv7(y, sy, r_.row(first), r_.stride(), w, decay.stride(), k.row(first), k.stride(), v_.row(first),
                    v_.stride(), a.row(first), a.stride(), b.row(first), b.stride(), s.data(), count, n);
        else
            K->wkv6(y, sy, r_.row(first), r_.stride(), k.row(first), k.stride(), v_.row(first), v_.stride(), w,
                    decay.stride(), bonus.data(), s.data(), count, n);
    }

    // The definitions, value by value.
    void exact(bool seven, int j, std::vector<double>& y, std::vector<double>& s) const {
        for (int t = 0; t < rows; ++t) {
            double removed = 0;
            y[t] = 0;
            for (int i = 0; i < n; ++i) removed += a.at(t, i) * s[i];
            for (int i = 0; i < n; ++i) {
                const double kv = static_cast<double>(k.at(t, i)) * v.at(t, j), w = std::exp(decay.at(t, i));
                if (!seven) y[t] += r.at(t, i) * (s[i] + bonus.at(0, i) * kv);
                s[i] = w * s[i] + kv + (seven ? b.at(t, i) * removed : 0);
                if (seven) y[t] += r.at(t, i) * s[i];
            }
        }
    }
};

void wkv(bool seven, int n, bool one_decay) {
    const Head h(5, n, one_decay);
    Rows state(h.state), y = Rows::out(h.rows, n, n + 2);
    h.call(seven, y.data(), y.stride(), h.r, h.v, state, 0, h.rows);
    y.untouched_outside();
    state.untouched_outside();
    for (int j = 0; j < n; ++j) {
        std::vector<double> wanted(h.rows), s(n);
        for (int i = 0; i < n; ++i) s[i] = h.state.at(i, j);
        h.exact(seven, j, wanted, s);
        const double tolerance = 4e-6 * (n + 8);
        for (int t = 0; t < h.rows; ++t) NEAR(y.at(t, j), wanted[t], tolerance, seven ? "wkv7" : "wkv6", j);
        for (int i = 0; i < n; ++i) NEAR(state.at(i, j), s[i], tolerance, "state", i * n + j);
    }
    for (const bool over_v : {true, false}) {  // row by row, over its own v or r
        Rows alone(h.state), v(h.v), r(h.r);
        const Rows& place = over_v ? v : r;
        for (int t = 0; t < h.rows; ++t)
            h.call(seven, place.row(t), place.stride(), r, v, alone, t, 1);
        CHECK(alone.same(state));
        for (int t = 0; t < h.rows; ++t) CHECK(std::memcmp(place.row(t), y.row(t), 4 * n) == 0);
    }
}

void recurrences() {
    for (const int n : lengths()) wkv4(n);
    wkv4_from_nothing();
    std::vector<int> heads;
    for (int n = 1; n <= 35; ++n) heads.push_back(n);
    for (int n : {48, 63, 64, 65, 80, 100, 128}) heads.push_back(n);
    for (const int n : heads) {
        wkv(true, n, false);
        wkv(false, n, false);
        wkv(false, n, true);
    }
}

void stream() {
    for (const int bytes : {0, 1, 63, 64, 65, 255, 256, 257, 1000}) {
        Memory memory(bytes);
        for (int i = 0; i < bytes; ++i) memory.data()[i] = static_cast<unsigned char>(generator());
        const std::uint64_t whole = K->stream(memory.data(), bytes);
        for (int i = 0; i < bytes; ++i) {
            memory.data()[i] ^= 1 << i % 8;
            CHECK(K->stream(memory.data(), bytes) != whole);
            memory.data()[i] ^= 1 << i % 8;
        }
        CHECK(K->stream(memory.data(), bytes) == whole);
    }
}

#ifdef _WIN32
int setenv(const char* name, const char* value, int) { return _putenv_s(name, value); }
#endif

void choice() {
    const char* outside = std::getenv("ROOKERY_ISA");
    const std::string wanted = outside != nullptr ? outside : "";
    setenv("ROOKERY_ISA", "sse9", 1);
    std::string message;
    try {
        kernels();
    } catch (const std::invalid_argument& error) {
        message = error.what();
    }
    CHECK(message.find("sse9") != std::string::npos && message.find("generic") != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
    setenv("ROOKERY_ISA", wanted.c_str(), 1);
    CHECK(kernels().name == wanted || wanted.empty());
    setenv("ROOKERY_ISA", "sse9", 1);
    CHECK(&kernels() == kernels(kernels().name));  // the first choice stays
    CHECK(kernels("sse9") == nullptr && kernels("") == nullptr && kernels("generic") != nullptr);
    std::printf("chosen: %s\n", kernels().name);
}

}  // namespace

int main() {
    choice();
    for (const char* name : {"generic", "avx2", "avx512", "neon"}) {
        K = kernels(name);
        if (K == nullptr) continue;
        CHECK(K->name == std::string(name));
        elements();
        extremes();
        accuracy();
        norms();
        recurrences();
        stream();
    }
    return 0;
}
