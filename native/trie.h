// The byte trie of a World-style tokenizer: greedy longest match over bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "vocabulary.h"

namespace rookery {

// A double array: the child of a node for byte c lies at cell `base ^ c` and is real if that cell's label is c.
// No two nodes share a base, so the label alone tells whose child a cell is. Immutable once built, hence thread-safe.
class Trie {
public:
    // Throws std::invalid_argument if a token stands twice ("line N: why") or a single byte has no token.
    explicit Trie(Vocabulary vocabulary);

    // Total: every byte is a token, so there is always a match.
    std::vector<std::uint32_t> encode(std::string_view text) const;

    // The bytes of a token; empty for id 0 (end of text) and for ids that no token has.
    std::string_view token(std::uint32_t id) const {
        return id < tokens_.size() ? vocabulary_.view(tokens_[id]) : std::string_view{};
    }

    std::uint32_t largest_id() const { return static_cast<std::uint32_t>(tokens_.size()) - 1; }
    std::size_t cell_count() const { return cells_.size(); }

private:
    struct Cell {
        std::uint32_t base = 0;  // 0: no children
        std::uint32_t info = kEmpty;

        std::uint32_t label() const { return info & 0x1FF; }
        std::uint32_t id() const { return info >> 9; }  // 0: no token ends here
    };
    static constexpr std::uint32_t kEmpty = 0x100;  // a label that is no byte
    static constexpr std::uint32_t kRootBase = 0x100;

    friend class Builder;

    Vocabulary vocabulary_;
    std::vector<Token> tokens_;  // by id
    std::vector<Cell> cells_;
};

}  // namespace rookery
