// How fast the linear kernels of one set are on one thread: bench_linear [set] [kind] [columns] [outputs] [rows...]
// A weight in memory shows the bandwidth, one of a few hundred rows the arithmetic. The best of several runs counts; a
// bare read of the same bytes goes between them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "panels.h"

using namespace rookery;

namespace {

volatile std::uint64_t sink;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Bytes {
    explicit Bytes(std::size_t bytes)  // of whole lines
        : size(bytes), data(static_cast<std::uint8_t*>(std::aligned_alloc(64, bytes))) {}
    Bytes(const Bytes&) = delete;
    ~Bytes() { std::free(data); }
    std::size_t size;
    std::uint8_t* data;
};

void measure(const Kernels& set, Kind kind, Input input, int columns, int outputs, const std::vector<int>& many) {
    const auto linear = set.linear[static_cast<int>(kind)][static_cast<int>(input)];
    if (linear == nullptr) return;
    const std::size_t bytes = panel_bytes(kind, columns);
    Bytes weights(bytes * panels(outputs));
    // Any bits do as codes; as numbers they must not be strange, or arithmetic on denormals is what is measured.
    std::mt19937 random(1);
    for (std::size_t i = 0; i < weights.size; i += 2) {
        const auto half = static_cast<std::uint16_t>(0x3000 | (random() & 0x8fff));
        std::memcpy(weights.data + i, &half, 2);
    }
    const Weight w = {kind, outputs, columns, weights.data};
    const int most = *std::max_element(many.begin(), many.end());
    const std::size_t row = input_bytes(input, columns);
    Bytes x(row * most);
    std::vector<float> values(static_cast<std::size_t>(most) * columns), out(static_cast<std::size_t>(most) * 64);
    for (auto& value : values) value = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 1000;
    if (input == Input::f32)
        for (int r = 0; r < most; ++r)
            std::memcpy(x.data + r * row, &values[static_cast<std::size_t>(r) * columns], 4 * columns);
    else
        set.encode[static_cast<int>(input)](x.data, values.data(), columns, most, columns, 0, columns);
    constexpr const char* names[INPUTS] = {"f32", "bf16", "codes"};
    std::printf("%s %-4s x %-5s [%d, %d]\n", set.name, name_of(kind), names[static_cast<int>(input)], outputs, columns);
    for (const int rows : many) {
        double best = 1e9, bare = 1e9;
        const double begin = now();
        for (int i = 0; i < 5 || (now() - begin < 0.3 && i < 100000); ++i) {
            const double t = now();
            for (int p = 0; p < panels(outputs); p += 4)  // as the engine calls: 64 outputs at a time
                linear(w, p, std::min(p + 4, panels(outputs)), x.data, row, rows, out.data(), 64);
            const double between = now();
            sink = sink + set.stream(weights.data, weights.size);
            best = std::min(best, between - t);
            bare = std::min(bare, now() - between);
        }
        const auto size = static_cast<double>(weights.size);
        std::printf("  %4d rows  %8.1f us  %7.1f GB/s  %7.1f Gop/s   bare stream %5.1f GB/s\n", rows, best * 1e6,
                    size / best * 1e-9, 2.0 * rows * outputs * columns / best * 1e-9, size / bare * 1e-9);
    }
}

}  // namespace

int main(int count, char** words) {
    const auto word = [&](int i, const char* otherwise) { return std::string(count > i ? words[i] : otherwise); };
    const Kernels* set = word(1, "").empty() ? &kernels() : kernels(word(1, "").c_str());
    if (set == nullptr) return std::fprintf(stderr, "no such set here\n"), 1;
    const std::string kind = word(2, "all");
    const int columns = std::stoi(word(3, "2048")), outputs = std::stoi(word(4, "256"));
    std::vector<int> rows;
    for (int i = 5; i < count; ++i) rows.push_back(std::atoi(words[i]));
    if (rows.empty()) rows = {1, 2, 4, 6, 8, 16, 64, 256};
    for (int k = 0; k < KINDS; ++k)
        for (int i = 0; i < INPUTS; ++i)
            if (kind == "all" || kind == name_of(static_cast<Kind>(k)))
                measure(*set, static_cast<Kind>(k), static_cast<Input>(i), columns, outputs, rows);
}
