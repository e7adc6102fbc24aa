// Reading alone: the floor under what a pass over the weights takes.
#pragma once

#include "linear.inl"

namespace rookery::ROOKERY_ISA {

static std::uint64_t stream(const std::uint8_t* data, std::size_t bytes) {
    std::uint64_t words[8] = {};
    U a = load_u(words), b = a, c = a, d = a;
    std::size_t i = 0;
    for (; i + 256 <= bytes; i += 256) {
        for (int line = 0; line < 256; line += 64) prefetch(data + i + line + AHEAD);
        a = a ^ load_u(data + i);
        b = b ^ load_u(data + i + 64);
        c = c ^ load_u(data + i + 128);
        d = d ^ load_u(data + i + 192);
    }
    store_u(words, (a ^ b) ^ (c ^ d));
    std::uint64_t out = 0;
    for (int j = 0; j < 8; ++j) out = out * 31 + words[j];
    for (; i < bytes; ++i) out = out * 31 + data[i];
    return out;
}

}  // namespace rookery::ROOKERY_ISA
