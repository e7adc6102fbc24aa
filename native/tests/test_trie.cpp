// The trie without Python: what it matches, and what it refuses. The Python tests go further; these run under sanitizers.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "trie.h"

using rookery::parse_vocabulary;
using rookery::Trie;

namespace {

void check(bool good, const char* what, int line) {
    if (good) return;
    std::fprintf(stderr, "line %d: %s\n", line, what);
    std::exit(1);
}
#define CHECK(what) check((what), #what, __LINE__)

std::string row(std::uint32_t id, const std::string& token) {
    std::string literal = "b'";
    for (const unsigned char c : token) {
        char escape[5];
        std::snprintf(escape, sizeof escape, "\\x%02x", c);
        literal += escape;
    }
    return std::to_string(id) + ' ' + literal + "' " + std::to_string(token.size()) + '\n';
}

std::string all_bytes() {
    std::string text;
    for (std::uint32_t byte = 0; byte < 256; ++byte) text += row(byte + 1, std::string(1, static_cast<char>(byte)));
    return text;
}

bool refused(const std::string& text) {
    try {
        Trie trie(parse_vocabulary(text));
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

void every_prefix_of_a_vocabulary_is_judged() {
    const std::string head = all_bytes(), row = "300 'ab\\u20ac\xe2\x82\xac' 8";
    const std::string good = head + row + "\r\n301 \"it's\" 4\n";
    for (std::size_t size = 1; size <= row.size() + 2; ++size)
        CHECK(refused(good.substr(0, head.size() + size)) == (size < row.size()));
    CHECK(refused(""));
    CHECK(refused(good + "302 'ab' 3\n"));
    CHECK(refused(good + "301 'ab' 2\n"));
    CHECK(refused(good + "302 'a' 1\n"));
}

void matches_are_the_longest() {
    std::mt19937 random(1);
    for (int round = 0; round < 200; ++round) {
        std::string text = all_bytes();
        std::unordered_map<std::string, std::uint32_t> ids;
        for (std::uint32_t byte = 0; byte < 256; ++byte) ids[std::string(1, static_cast<char>(byte))] = byte + 1;
        const auto some_bytes = [&](std::size_t size) {
            std::string out;
            while (out.size() < size) out += static_cast<char>(random() % (round % 2 ? 3 : 256));
            return out;
        };
        for (std::uint32_t id = 300; id < 1000; ++id) {
            const std::string token = some_bytes(2 + random() % 7);
            if (ids.emplace(token, id).second) text += row(id, token);
        }
        const Trie trie(parse_vocabulary(text));
        const std::string input = some_bytes(500);
        std::size_t at = 0;
        for (const std::uint32_t id : trie.encode(input)) {
            std::size_t size = std::min<std::size_t>(8, input.size() - at);
            while (!ids.contains(input.substr(at, size))) --size;
            CHECK(ids.at(input.substr(at, size)) == id);
            CHECK(trie.token(id) == input.substr(at, size));
            at += size;
        }
        CHECK(at == input.size());
    }
}

}  // namespace

int main() {
    every_prefix_of_a_vocabulary_is_judged();
    matches_are_the_longest();
    std::puts("trie: all is well");
}
