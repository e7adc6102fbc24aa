// Times of single kernels, one core, best of many: to compare texts of a kernel, not for the record.
// bench_kernels [SET] [GHZ]: with the clock given, cycles too.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"

using namespace rookery;

namespace {

double gigahertz = 0;

template <class Work>
void best_of(const char* name, double units, const char* unit, Work work) {
    double best = 1e9;
    for (int i = 0; i < 60; ++i) {
        const auto start = std::chrono::steady_clock::now();
        for (int j = 0; j < 20; ++j) work();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        best = std::min(best, took.count() / 20);
    }
    std::printf("%-24s %9.3f us", name, best * 1e6);
    if (gigahertz > 0) std::printf("  %9.3f cycles a %s", best * gigahertz * 1e9 / units, unit);
    std::printf("\n");
}

std::vector<float> values(int n, float low, float high) {
    std::vector<float> out(n);
    for (int i = 0; i < n; ++i) out[i] = low + (high - low) * static_cast<float>(i * 37 % 101) / 101;
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    const Kernels* k = argc > 1 ? kernels(argv[1]) : &kernels();
    if (k == nullptr) return 1;
    if (argc > 2) gigahertz = std::atof(argv[2]);
    std::printf("%s\n", k->name);
    const int n = 2048;
    const std::vector<float> x = values(n, -3, 3), w = values(n, 0, 2), decay = values(n, -2, 0), a = values(n, -.1f, .1f);
    std::vector<float> y(n);
    const auto unary = [&](const char* name, Unary op) {
        best_of(name, n, "element", [&] { k->unary[static_cast<int>(op)](y.data(), n, x.data(), n, 1, n); });
    };
    unary("square 2048", Unary::square);
    unary("exp 2048", Unary::exp);
    unary("tanh 2048", Unary::tanh);
    unary("sigmoid 2048", Unary::sigmoid);
    unary("silu 2048", Unary::silu);
    best_of("fma 2048", n, "element", [&] { k->fma(y.data(), n, x.data(), n, w.data(), n, a.data(), n, 1, n); });
    best_of("layer_norm 2048", n, "element",
            [&] { k->layer_norm(y.data(), n, x.data(), n, w.data(), a.data(), 1e-5f, 1, n); });
    best_of("group_norm 32 x 64", n, "element",
            [&] { k->group_norm(y.data(), n, x.data(), n, w.data(), a.data(), 1e-5f, 1, n, 64); });
    best_of("normalize 32 x 64", n, "element", [&] { k->normalize(y.data(), n, x.data(), n, 1, n, 64); });
    best_of("dot 32 x 64", n, "element", [&] { k->dot(y.data(), n, x.data(), n, w.data(), n, 1, n, 64); });
    best_of("wkv4 64 x 16 rows", 1024, "element", [&] {
        static std::vector<float> state(192, 0.5f);
        k->wkv4(y.data(), 64, x.data(), 64, x.data(), 64, decay.data(), x.data(), &state[0], &state[64], &state[128], 16,
                64);
    });
    std::vector<float> state(64 * 64, 0.1f);
    for (const int rows : {1, 16}) {
        best_of(rows == 1 ? "wkv7 64 x 1 row" : "wkv7 64 x 16 rows", rows, "row", [&] {
            k->wkv7(y.data(), 64, x.data(), 64, decay.data(), 64, x.data(), 64, x.data(), 64, a.data(), 64, a.data(), 64,
                    state.data(), rows, 64);
        });
        best_of(rows == 1 ? "wkv6 64 x 1 row" : "wkv6 64 x 16 rows", rows, "row", [&] {
            k->wkv6(y.data(), 64, x.data(), 64, x.data(), 64, x.data(), 64, decay.data(), 64, a.data(), state.data(),
                    rows, 64);
        });
    }
    const std::size_t big = std::size_t{256} << 20;
    std::vector<std::uint8_t> memory(big, 1);
    std::uint64_t sum = 0;
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
        const auto start = std::chrono::steady_clock::now();
        sum += k->stream(memory.data(), big);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::printf("stream 256 MiB           %9.3f GB/s (%d)\n", big / best / 1e9, static_cast<int>(sum & 1));
}
