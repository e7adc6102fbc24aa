#include "trie.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace rookery {
namespace {

struct Key {
    std::uint64_t head;  // first eight bytes, big-endian, zero-padded: settles most comparisons
    std::uint32_t index;
};

std::vector<std::uint32_t> sorted_indices(const Vocabulary& vocabulary) {
    std::vector<Key> keys;
    keys.reserve(vocabulary.tokens.size());
    for (const Token& token : vocabulary.tokens) {
        std::uint64_t head = 0;
        for (std::uint32_t i = 0; i < 8; ++i)
            head = head << 8 | (i < token.size ? static_cast<unsigned char>(vocabulary.bytes[token.offset + i]) : 0);
        keys.push_back({head, static_cast<std::uint32_t>(keys.size())});
    }
    std::sort(keys.begin(), keys.end(), [&](const Key& a, const Key& b) {
        if (a.head != b.head) return a.head < b.head;
        const int order = vocabulary.view(vocabulary.tokens[a.index]).compare(vocabulary.view(vocabulary.tokens[b.index]));
        return order != 0 ? order < 0 : a.index < b.index;
    });
    std::vector<std::uint32_t> indices;
    indices.reserve(keys.size());
    for (const Key& key : keys) indices.push_back(key.index);
    return indices;
}

void refuse_doubles(const Vocabulary& vocabulary, const std::vector<std::uint32_t>& sorted) {
    std::uint32_t worst = UINT32_MAX;
    for (std::size_t i = 1; i < sorted.size(); ++i)
        if (vocabulary.view(vocabulary.tokens[sorted[i - 1]]) == vocabulary.view(vocabulary.tokens[sorted[i]]))
            worst = std::min(worst, sorted[i]);
    if (worst != UINT32_MAX)
        throw std::invalid_argument("line " + std::to_string(worst + 1) + ": the token was given before");
}

}  // namespace

// Lays the sorted tokens out breadth first, so that the upper levels, which every match walks, share cache lines.
class Builder {
public:
    Builder(const Vocabulary& vocabulary, std::vector<Trie::Cell>& cells)
        : vocabulary_(vocabulary), cells_(cells), sorted_(sorted_indices(vocabulary)) {
        refuse_doubles(vocabulary_, sorted_);
        cells_.resize(Trie::kRootBase);  // block 0 stays empty: base 0 means "no children"
        based_.resize(Trie::kRootBase, true);
        free_.resize(Trie::kRootBase);
        nodes_.push_back({0, 0, static_cast<std::uint32_t>(sorted_.size()), 0});
        for (std::size_t next = 0; next < nodes_.size(); ++next) place_children(nodes_[next]);
        refuse_gaps();
    }

private:
    struct Node {
        std::uint32_t cell, from, to, depth;  // its tokens are sorted_[from, to), alike in their first `depth` bytes
    };
    struct Link {
        std::uint32_t before, next;
    };
    struct Child {
        unsigned char byte;
        std::uint32_t from, to;
    };

    const Token& token(std::uint32_t at) const { return vocabulary_.tokens[sorted_[at]]; }

    void place_children(const Node node) {
        std::uint32_t at = node.from;
        if (node.depth > 0 && token(at).size == node.depth) cells_[node.cell].info |= token(at++).id << 9;
        children_.clear();
        for (; at < node.to; ++at) {
            const auto byte = static_cast<unsigned char>(vocabulary_.view(token(at))[node.depth]);
            if (children_.empty() || children_.back().byte != byte) children_.push_back({byte, at, at});
            children_.back().to = at + 1;
        }
        if (children_.empty()) return;
        const std::uint32_t base = find_base();
        based_[base] = true;
        cells_[node.cell].base = base;
        for (const Child& child : children_) {
            const std::uint32_t cell = base ^ child.byte;
            take(cell);
            cells_[cell].info = child.byte;
            nodes_.push_back({cell, child.from, child.to, node.depth + 1});
        }
    }

    // Next fit over the ring of free cells. A bounded number of tries keeps a hostile vocabulary from costing quadratic
    // time; giving up costs one block of 256 cells. The root finds no free cell and so gets kRootBase.
    std::uint32_t find_base() {
        constexpr int kTries = 64;
        for (int tries = 0; tries < kTries && ring_ != 0; ++tries, ring_ = free_[ring_].next) {
            const std::uint32_t base = ring_ ^ children_.front().byte;
            if (!based_[base] && fits(base)) return base;
        }
        return add_block();
    }

    std::uint32_t add_block() {
        const auto block = static_cast<std::uint32_t>(cells_.size());
        cells_.resize(block + 0x100);
        based_.resize(block + 0x100);
        free_.resize(block + 0x100);
        for (std::uint32_t cell = block; cell < block + 0x100; ++cell) {
            const std::uint32_t before = cell == block ? (ring_ ? free_[ring_].before : block + 0xFF) : cell - 1;
            free_[cell] = {before, cell + 1};
        }
        const std::uint32_t next = ring_ ? ring_ : block;
        free_[free_[block].before].next = block;
        free_[block + 0xFF].next = next;
        free_[next].before = block + 0xFF;
        ring_ = block;
        return block;
    }

    void take(std::uint32_t cell) {
        const auto [before, next] = free_[cell];
        free_[before].next = next;
        free_[next].before = before;
        if (ring_ == cell) ring_ = next == cell ? 0 : next;
        free_[cell] = {0, 0};
    }

    bool fits(std::uint32_t base) const {
        return std::all_of(children_.begin(), children_.end(), [&](const Child& c) { return free_[base ^ c.byte].next != 0; });
    }

    void refuse_gaps() const {
        for (std::uint32_t byte = 0; byte < 0x100; ++byte) {
            const std::size_t cell = Trie::kRootBase ^ byte;
            // Another node's child may lie where the missing byte's cell would be: only the label tells.
            if (cell < cells_.size() && cells_[cell].id() != 0 && cells_[cell].label() == byte) continue;
            throw std::invalid_argument("no token for the single byte " + std::to_string(byte) +
                                        ": wanted one for each of the 256");
        }
    }

    const Vocabulary& vocabulary_;
    std::vector<Trie::Cell>& cells_;
    std::vector<std::uint32_t> sorted_;
    std::vector<bool> based_;      // is this base taken
    std::vector<Link> free_;       // a ring through the free cells; {0, 0} for a taken one
    std::uint32_t ring_ = 0;       // where the search goes on; 0: no cell is free
    std::vector<Node> nodes_;
    std::vector<Child> children_;
};

Trie::Trie(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)), tokens_(1) {
    Builder(vocabulary_, cells_);
    cells_.shrink_to_fit();
    for (const Token& token : vocabulary_.tokens) {
        if (token.id >= tokens_.size()) tokens_.resize(token.id + 1);
        tokens_[token.id] = token;
    }
    std::vector<Token>().swap(vocabulary_.tokens);
}

std::vector<std::uint32_t> Trie::encode(std::string_view text) const {
    std::vector<std::uint32_t> ids;
    ids.reserve(text.size() / 3 + 16);
    const Cell* cells = cells_.data();
    const auto* at = reinterpret_cast<const unsigned char*>(text.data());
    const auto* end = at + text.size();
    while (at < end) {
        Cell cell = cells[kRootBase ^ *at++];
        std::uint32_t best = cell.id();
        for (const auto* probe = at; cell.base != 0 && probe < end;) {
            const std::uint32_t byte = *probe++;
            cell = cells[cell.base ^ byte];
            if (cell.label() != byte) break;
            if (cell.id() != 0) best = cell.id(), at = probe;
        }
        ids.push_back(best);
    }
    return ids;
}

}  // namespace rookery
