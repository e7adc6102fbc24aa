// Blocks without Python: every bit pattern decodes, every number encodes, and within a type's step. Runs under sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "blocks.h"

using rookery::block_type;

namespace {

void check(bool good, const char* what, int line) {
    if (good) return;
    std::fprintf(stderr, "line %d: %s\n", line, what);
    std::exit(1);
}
#define CHECK(what) check((what), #what, __LINE__)

struct Bound {
    const char* name;
    double error;  // largest root mean square of the rests, in standard deviations of normal numbers
};
constexpr Bound kBounds[] = {{"q8_0", 0.006}, {"q4_0", 0.10}, {"q4_1", 0.09}, {"q5_0", 0.05},
                             {"q5_1", 0.045}, {"q4_k", 0.08}, {"q5_k", 0.04}, {"q6_k", 0.025}};

void any_bytes_decode() {
    std::mt19937 random(1);
    for (const auto& bound : kBounds) {
        const auto& type = *block_type(bound.name);
        std::vector<std::uint8_t> block(type.bytes);
        std::vector<float> values(type.elements);
        for (int round = 0; round < 1000; ++round) {
            for (auto& byte : block) byte = static_cast<std::uint8_t>(random());
            type.decode(block.data(), values.data());
        }
    }
}

void numbers_come_back() {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (const auto& bound : kBounds) {
        const auto& type = *block_type(bound.name);
        std::vector<std::uint8_t> block(type.bytes), again(type.bytes);
        std::vector<float> values(type.elements), back(type.elements);
        double error = 0;
        for (int round = 0; round < 200; ++round) {
            for (auto& value : values) value = normal(random);
            type.encode(values.data(), block.data());
            type.decode(block.data(), back.data());
            for (std::size_t i = 0; i < values.size(); ++i) error += std::pow(values[i] - back[i], 2) / values.size();
        }
        CHECK(std::sqrt(error / 200) < bound.error);
    }
}

void strange_numbers_make_some_block() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float strange[] = {0, -0.f, 1e-45f, -1e-30f, 6e-8f, 1, 65504, 1e9f, -1e20f, 3e38f, kInfinity, -kInfinity,
                             std::numeric_limits<float>::quiet_NaN()};
    std::mt19937 random(3);
    for (const auto& bound : kBounds) {
        const auto& type = *block_type(bound.name);
        std::vector<std::uint8_t> block(type.bytes);
        std::vector<float> values(type.elements);
        for (int round = 0; round < 500; ++round) {
            for (auto& value : values) value = strange[random() % (round % 2 ? 3 : std::size(strange))];
            type.encode(values.data(), block.data());
            type.decode(block.data(), values.data());
            for (const float value : values) CHECK(std::isfinite(value));
        }
    }
}

}  // namespace

int main() {
    CHECK(!block_type("q3_k"));
    any_bytes_decode();
    numbers_come_back();
    strange_numbers_make_some_block();
    std::puts("blocks: all is well");
}
