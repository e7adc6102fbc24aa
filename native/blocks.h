// Block-quantised types: what their bytes mean, and the bytes that lie nearest to given numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace rookery {

// A type by its name in Python; nullptr from `block_type` for a name that is none.
struct BlockType {
    std::string_view name;
    std::size_t bytes, elements;  // of one block
    void (*decode)(const std::uint8_t* block, float* values);
    void (*encode)(const float* values, std::uint8_t* block);  // total: whatever the numbers, some block comes out
};

const BlockType* block_type(std::string_view name);

float widen_half(std::uint16_t half);

}  // namespace rookery
