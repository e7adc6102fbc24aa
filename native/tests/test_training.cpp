// Training's recurrences and gradients on every instruction set that runs here: outputs against loops over doubles, a
// gradient in a direction of its own against a difference of those; resets, lengths of a last chunk, threads.
#include <functional>
#include <map>
#include <string>

#include "../training.h"
#include "rows.h"

using namespace rookery;

namespace {

using Values = std::vector<double>;
using Inputs = std::map<std::string, Values>;

struct Shape {
    int batch, time, heads, n;
    std::vector<std::uint8_t> resets;
    bool fixed = false;
    std::size_t at(int b, int t, int h) const {
        return ((static_cast<std::size_t>(b) * time + t) * heads + h) * static_cast<std::size_t>(n);
    }
    bool fresh(int b, int t) const { return !resets.empty() && resets[static_cast<std::size_t>(b) * time + t] != 0; }
    std::size_t tokens() const { return at(batch, 0, 0); }
    std::size_t states() const { return static_cast<std::size_t>(batch) * heads * n * n; }
};
struct Outputs {
    Values y, state;
};

// Calls step(state, first element of the token, of the state's head) for the tokens of all heads in their order.
template <class Step>
void heads(const Shape& s, Values& state, Step step) {
    const std::size_t square = static_cast<std::size_t>(s.n) * s.n;
    for (int b = 0; b < s.batch; ++b)
        for (int h = 0; h < s.heads; ++h) {
            double* own = state.data() + (static_cast<std::size_t>(b) * s.heads + h) * square;
            for (int t = 0; t < s.time; ++t) {
                if (s.fresh(b, t)) std::fill_n(own, square, 0.0);
                step(own, s.at(b, t, h), static_cast<std::size_t>(h) * s.n);
            }
        }
}

Outputs loop7(const Shape& s, const Inputs& x) {
    Outputs out{Values(s.tokens()), x.at("state")};
    const auto &r = x.at("r"), &w = x.at("decay"), &k = x.at("k"), &v = x.at("v"), &a = x.at("a"), &b = x.at("b");
    heads(s, out.state, [&](double* state, std::size_t at, std::size_t) {
        for (int j = 0; j < s.n; ++j) {
            double removed = 0;
            for (int i = 0; i < s.n; ++i) removed += a[at + i] * state[i * s.n + j];
            for (int i = 0; i < s.n; ++i) {
                double& e = state[i * s.n + j];
                e = std::exp(w[at + i]) * e + b[at + i] * removed + k[at + i] * v[at + j];
                out.y[at + j] += r[at + i] * e;
            }
        }
    });
    return out;
}

Outputs loop6(const Shape& s, const Inputs& x) {
    Outputs out{Values(s.tokens()), x.at("state")};
    const auto &r = x.at("r"), &w = x.at("decay"), &k = x.at("k"), &v = x.at("v"), &u = x.at("bonus");
    heads(s, out.state, [&](double* state, std::size_t at, std::size_t head) {
        for (int i = 0; i < s.n; ++i)
            for (int j = 0; j < s.n; ++j) {
                double& e = state[i * s.n + j];
                const double own = k[at + i] * v[at + j];
                out.y[at + j] += r[at + i] * (e + u[head + i] * own);
                e = std::exp(w[(s.fixed ? head : at) + i]) * e + own;
            }
    });
    return out;
}

// Channels are heads of one element.
Outputs loop4(const Shape& s, const Inputs& x) {
    Outputs out{Values(s.tokens()), x.at("state")};
    const auto &k = x.at("k"), &v = x.at("v"), &w = x.at("decay"), &u = x.at("bonus");
    for (int b = 0; b < s.batch; ++b)
        for (int c = 0; c < s.heads; ++c) {
            double* state[3];
            for (int i = 0; i < 3; ++i) state[i] = &out.state[(static_cast<std::size_t>(b) * 3 + i) * s.heads + c];
            auto &p = *state[0], &q = *state[1], &m = *state[2];
            for (int t = 0; t < s.time; ++t) {
                if (s.fresh(b, t)) p = q = 0, m = -1e30;
                const std::size_t at = s.at(b, t, c);
                double high = std::max(m, k[at] + u[c]), old = std::exp(m - high), own = std::exp(k[at] + u[c] - high);
                out.y[at] = (old * p + own * v[at]) / (old * q + own);
                high = std::max(m + w[c], k[at]);
                old = std::exp(m + w[c] - high), own = std::exp(k[at] - high);
                p = old * p + own * v[at], q = old * q + own, m = high;
            }
        }
    return out;
}

Values random(std::size_t size, float low, float high) {
    Values x(size);
    for (auto& e : x) e = uniform(low, high);  // exact as a float
    return x;
}
std::vector<float> floats(const Values& x) { return {x.begin(), x.end()}; }
double inner(const Values& x, const Values& y) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
    return sum;
}
double size_of(const Values& x) { return std::sqrt(inner(x, x)); }

void close(const std::vector<float>& got, const Values& wanted, const char* what) {
    Values difference(wanted);
    CHECK(got.size() == wanted.size());
    for (std::size_t i = 0; i < got.size(); ++i) difference[i] -= got[i];
    NEAR(size_of(difference), 0, 2e-6 * size_of(wanted), what, static_cast<int>(got.size()));
}

using Arrays = std::map<std::string, std::vector<float>>;
using Loop = Outputs (*)(const Shape&, const Inputs&);
using Run = std::function<void(const Extent&, const Arrays& in, Arrays& out, bool backward, int threads)>;

// The kernels' outputs and gradients for these inputs, on so many threads.
Arrays computed(const Shape& s, const Arrays& in, const Run& run, int threads) {
    const Extent extent{s.batch, s.time, s.heads, s.n, s.resets.empty() ? nullptr : s.resets.data()};
    Arrays out;
    out["y"].resize(in.at("dy").size());
    out["state_out"].resize(in.at("state").size());
    for (const auto& [name, x] : in)
        if (name != "dy" && name != "dstate_out") out["d" + name].resize(x.size());
    run(extent, in, out, false, threads);
    run(extent, in, out, true, threads);
    return out;
}

void check(const Shape& s, const Inputs& inputs, Loop loop, const Run& run) {
    const Outputs wanted = loop(s, inputs);
    const Values dy = random(wanted.y.size(), -1, 1), dstate = random(wanted.state.size(), -1, 1);
    Arrays in{{"dy", floats(dy)}, {"dstate_out", floats(dstate)}};
    for (const auto& [name, x] : inputs) in[name] = floats(x);
    const Arrays got = computed(s, in, run, 1);
    close(got.at("y"), wanted.y, "y");
    close(got.at("state_out"), wanted.state, "the state");
    const auto loss = [&](const Inputs& x) {
        const Outputs out = loop(s, x);
        return inner(out.y, dy) + inner(out.state, dstate);
    };
    for (const auto& [name, x] : inputs) {
        const auto& found = got.at("d" + name);
        const Values gradient(found.begin(), found.end()), direction = random(x.size(), -1, 1);
        constexpr double step = 1e-6;
        Inputs up = inputs, down = inputs;
        for (std::size_t i = 0; i < x.size(); ++i) {
            up[name][i] += step * direction[i];
            down[name][i] -= step * direction[i];
        }
        const double slope = (loss(up) - loss(down)) / (2 * step), scale = size_of(gradient) * size_of(direction);
        NEAR(inner(gradient, direction), slope, 2e-6 * scale + 1e-7, ("gradient of " + name).c_str(), s.time);
    }
    for (const int threads : {2, 7}) CHECK(computed(s, in, run, threads) == got);
}

const float* of(const Arrays& x, const char* name) { return x.at(name).data(); }
float* of(Arrays& x, const char* name) { return x.at(name).data(); }

void run7(const Extent& e, const Arrays& in, Arrays& out, bool backward, int threads) {
    const float *r = of(in, "r"), *w = of(in, "decay"), *k = of(in, "k"), *v = of(in, "v"), *a = of(in, "a"),
                *b = of(in, "b"), *state = of(in, "state");
    if (!backward)
        run(Forward7{e, r, w, k, v, a, b, state, of(out, "y"), of(out, "state_out")}, threads, *K);
    else
        run(Backward7{e, of(in, "dy"), of(in, "dstate_out"), r, w, k, v, a, b, state, of(out, "dr"), of(out, "ddecay"),
                      of(out, "dk"), of(out, "dv"), of(out, "da"), of(out, "db"), of(out, "dstate")},
            threads, *K);
}

void run6(bool fixed, const Extent& e, const Arrays& in, Arrays& out, bool backward, int threads) {
    const float *r = of(in, "r"), *k = of(in, "k"), *v = of(in, "v"), *w = of(in, "decay"), *u = of(in, "bonus"),
                *state = of(in, "state");
    if (!backward)
        run(Forward6{e, r, k, v, w, u, state, fixed, of(out, "y"), of(out, "state_out")}, threads, *K);
    else
        run(Backward6{e, of(in, "dy"), of(in, "dstate_out"), r, k, v, w, u, state, fixed, of(out, "dr"), of(out, "dk"),
                      of(out, "dv"), of(out, "ddecay"), of(out, "dbonus"), of(out, "dstate")},
            threads, *K);
}

void run4(const Extent& e, const Arrays& in, Arrays& out, bool backward, int threads) {
    const float *k = of(in, "k"), *v = of(in, "v"), *w = of(in, "decay"), *u = of(in, "bonus"),
                *state = of(in, "state");
    if (!backward)
        run(Forward4{e, k, v, w, u, state, of(out, "y"), of(out, "state_out")}, threads, *K);
    else
        run(Backward4{e, of(in, "dy"), of(in, "dstate_out"), k, v, w, u, state, of(out, "dk"), of(out, "dv"),
                      of(out, "ddecay"), of(out, "dbonus"), of(out, "dstate")},
            threads, *K);
}

Shape shape(int batch, int time, int heads, int n, bool reset, bool fixed = false) {
    Shape s{batch, time, heads, n, {}, fixed};
    if (reset) {
        s.resets.resize(static_cast<std::size_t>(batch) * time);
        for (auto& e : s.resets) e = uniform(0, 1) < 0.15f;
        s.resets[0] = s.resets.back() = 1;
    }
    return s;
}

void test7(int time, int n, bool reset, float slowest, float fastest) {
    const Shape s = shape(2, time, n > 32 ? 1 : 2, n, reset);
    const float small = 1 / std::sqrt(static_cast<float>(n));
    Inputs x{{"decay", random(s.tokens(), fastest, slowest)}, {"state", random(s.states(), -1, 1)}};
    for (const char* name : {"r", "k", "v"}) x[name] = random(s.tokens(), -1, 1);
    for (const char* name : {"a", "b"}) x[name] = random(s.tokens(), -small, small);
    check(s, x, loop7, run7);
}

void test6(int time, int n, bool reset, bool fixed, float slowest, float fastest) {
    using namespace std::placeholders;
    const Shape s = shape(2, time, n > 32 ? 1 : 2, n, reset, fixed);
    const std::size_t head = static_cast<std::size_t>(s.heads) * n;
    Inputs x{{"decay", random(fixed ? head : s.tokens(), fastest, slowest)}, {"state", random(s.states(), -1, 1)},
             {"bonus", random(head, -1, 1)}};
    for (const char* name : {"r", "k", "v"}) x[name] = random(s.tokens(), -1, 1);
    check(s, x, loop6, std::bind(run6, fixed, _1, _2, _3, _4, _5));
}

void test4(int time, int channels, bool reset, float largest) {
    const Shape s = shape(2, time, channels, 1, reset);
    const std::size_t states = static_cast<std::size_t>(s.batch) * 3 * channels;
    Inputs x{{"k", random(s.tokens(), -largest, largest)}, {"v", random(s.tokens(), -1, 1)},
             {"decay", random(static_cast<std::size_t>(channels), -3, -0.01f)},
             {"bonus", random(static_cast<std::size_t>(channels), -1, 1)}, {"state", random(states, 0.1f, 1)}};
    check(s, x, loop4, run4);
}

}  // namespace

int main() {
    for (const char* name : {"generic", "avx2", "avx512", "neon"}) {
        K = kernels(name);
        if (K == nullptr) continue;
        for (const bool reset : {false, true})
            for (const int time : {1, 2, 15, 16, 17, 33, 50}) {
                test7(time, 16, reset, -0.001f, -0.6f);
                test6(time, 16, reset, reset == (time % 2 == 0), -0.001f, -3);
                test4(time, 19, reset, 2);
            }
        for (const int n : {32, 48, 64}) {
            test7(18, n, true, -0.001f, -0.6f);
            for (const bool fixed : {false, true}) test6(18, n, true, fixed, -0.001f, -3);
        }
        test7(40, 16, false, -20, -40);
        test6(40, 16, false, false, -1000, -10000);
        test6(40, 16, false, true, -1e-6f, -1e-5f);
        test4(40, 32, true, 20);
        test4(0, 5, false, 1);
    }
    return 0;
}
