// A World-style vocabulary text: one token a line, `id literal length`, LF or CRLF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rookery {

inline constexpr std::uint32_t kLargestId = 1u << 20;

struct Token {
    std::uint32_t id;      // 1 .. kLargestId; 0 is the end of text and never in a file
    std::uint32_t offset;  // into Vocabulary::bytes
    std::uint32_t size;    // in bytes, at least 1
};

struct Vocabulary {
    std::vector<Token> tokens;  // in file order: token i stood on line i + 1
    std::string bytes;

    std::string_view view(const Token& token) const { return {bytes.data() + token.offset, token.size}; }
};

// Literals are those that Python's repr() writes for a str or bytes object.
// Throws std::invalid_argument("line N: why") at the first bad line. Says nothing yet about tokens that stand twice.
Vocabulary parse_vocabulary(std::string_view text);

}  // namespace rookery
