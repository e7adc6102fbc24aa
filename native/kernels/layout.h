// Where things lie in a panel and in a row of activations, for packing and for the kernels of every instruction set.
// All of it is local to its file: a function that files share might be linked from one compiled for another processor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"

namespace rookery {

constexpr std::size_t LINE = 64;  // bytes that the cache moves together

[[maybe_unused]] static constexpr std::size_t whole_lines(std::size_t bytes) {
    return (bytes + LINE - 1) / LINE * LINE;
}

// 32 columns of a row of activations.
struct Codes {
    std::int8_t code[BLOCK];
    float scale;
    std::int32_t start8, start4;  // -128 and -8 times the sum of the codes: what the offsets of q8 and q4 add too much
    float sum[2];                 // of the first and of the last 16 codes
    std::int32_t unused[3];
};
static_assert(sizeof(Codes) == LINE);

// An odd number of lines, so that equal columns of neighbouring rows do not compete for the same places of the cache.
[[maybe_unused]] static constexpr std::size_t row_bytes(Input input, int columns) {
    const auto n = static_cast<std::size_t>(columns);
    const std::size_t bytes = input == Input::f32    ? 4 * n
                              : input == Input::bf16 ? 2 * n
                                                     : (n + BLOCK - 1) / BLOCK * sizeof(Codes);
    return whole_lines(bytes) | LINE;
}

// Bytes of a panel before its codes.
[[maybe_unused]] static constexpr std::size_t head_bytes(Kind kind, int columns) {
    const auto n = static_cast<std::size_t>(columns);
    if (kind == Kind::q8 || kind == Kind::q4) return whole_lines(n / BLOCK * PANEL * 2);
    return kind == Kind::x8 ? n / 16 * PANEL * 4 * 2 : 0;
}

[[maybe_unused]] static constexpr std::size_t size_of_panel(Kind kind, int columns) {
    const auto n = static_cast<std::size_t>(columns);
    switch (kind) {
        case Kind::f32: return n * PANEL * 4;
        case Kind::f16: return whole_lines(n * PANEL * 2);
        case Kind::bf16: return (n + 1) / 2 * PANEL * 4;
        case Kind::q4: return head_bytes(kind, columns) + n * PANEL / 2;
        case Kind::q8:
        case Kind::x8: return head_bytes(kind, columns) + n * PANEL;
    }
    return 0;
}

}  // namespace rookery
