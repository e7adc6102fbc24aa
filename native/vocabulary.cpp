#include "vocabulary.h"

#include <charconv>
#include <optional>
#include <stdexcept>

namespace rookery {
namespace {

[[noreturn]] void fail(std::size_t line, const std::string& why) {
    throw std::invalid_argument("line " + std::to_string(line) + ": " + why);
}

std::optional<std::uint32_t> number(std::string_view text, int base = 10) {
    std::uint32_t value = 0;
    const char* end = text.data() + text.size();
    auto [stop, error] = std::from_chars(text.data(), end, value, base);
    if (text.empty() || error != std::errc{} || stop != end) return std::nullopt;
    return value;
}

bool append_utf8(std::string& out, std::uint32_t point) {
    if (point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) return false;
    auto tail = [&](int shift) { out.push_back(static_cast<char>(0x80 | ((point >> shift) & 0x3F))); };
    if (point < 0x80) {
        out.push_back(static_cast<char>(point));
    } else if (point < 0x800) {
        out.push_back(static_cast<char>(0xC0 | (point >> 6)));
        tail(0);
    } else if (point < 0x10000) {
        out.push_back(static_cast<char>(0xE0 | (point >> 12)));
        tail(6), tail(0);
    } else {
        out.push_back(static_cast<char>(0xF0 | (point >> 18)));
        tail(12), tail(6), tail(0);
    }
    return true;
}

// Moves one raw character from `text` at `at` to `out`; false unless it is well-formed UTF-8.
bool copy_utf8(std::string_view text, std::size_t& at, std::string& out) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t size = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0;
    if (size == 0 || size > text.size() - at) return false;
    std::uint32_t point = size == 1 ? lead : lead & (0x7Fu >> size);
    for (std::size_t i = 1; i < size; ++i) {
        const auto next = static_cast<unsigned char>(text[at + i]);
        if ((next & 0xC0) != 0x80) return false;
        point = point << 6 | (next & 0x3F);
    }
    const bool overlong = (size == 3 && point < 0x800) || (size == 4 && point < 0x10000);
    at += size;
    return !overlong && append_utf8(out, point);
}

// Moves one escape sequence, `at` on the character behind the backslash.
bool copy_escape(std::string_view text, std::size_t& at, bool is_bytes, std::string& out) {
    if (at == text.size()) return false;
    const char kind = text[at++];
    switch (kind) {
        case '\\': case '\'': case '"': out.push_back(kind); return true;
        case 'n': out.push_back('\n'); return true;
        case 'r': out.push_back('\r'); return true;
        case 't': out.push_back('\t'); return true;
    }
    const std::size_t digits = kind == 'x' ? 2 : kind == 'u' && !is_bytes ? 4 : kind == 'U' && !is_bytes ? 8 : 0;
    if (digits == 0 || digits > text.size() - at) return false;
    const auto point = number(text.substr(at, digits), 16);
    if (!point) return false;
    at += digits;
    if (!is_bytes) return append_utf8(out, *point);
    out.push_back(static_cast<char>(*point));
    return true;
}

bool copy_literal(std::string_view text, std::string& out) {
    const bool is_bytes = text.starts_with('b');
    if (is_bytes) text.remove_prefix(1);
    if (text.size() < 2 || text.front() != text.back() || (text.front() != '\'' && text.front() != '"')) return false;
    const char quote = text.front();
    text = text.substr(1, text.size() - 2);
    for (std::size_t at = 0; at < text.size();) {
        const auto c = static_cast<unsigned char>(text[at]);
        if (c == '\\') {
            if (!copy_escape(text, ++at, is_bytes, out)) return false;
        } else if (c < 0x20 || c == static_cast<unsigned char>(quote) || (is_bytes && c >= 0x80)) {
            return false;
        } else if (!copy_utf8(text, at, out)) {
            return false;
        }
    }
    return true;
}

}  // namespace

Vocabulary parse_vocabulary(std::string_view text) {
    Vocabulary vocabulary;
    vocabulary.bytes.reserve(text.size());
    std::vector<bool> seen(kLargestId + 1);
    for (std::size_t line = 1; !text.empty(); ++line) {
        const std::size_t end = text.find('\n');
        std::string_view row = text.substr(0, end);
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
        if (row.ends_with('\r')) row.remove_suffix(1);

        const std::size_t first = row.find(' '), last = row.rfind(' ');
        if (first == last) fail(line, "wanted `id literal length`");
        const auto id = number(row.substr(0, first));
        if (!id || *id == 0 || *id > kLargestId)
            fail(line, "the id must be a number from 1 to " + std::to_string(kLargestId));
        const auto offset = static_cast<std::uint32_t>(vocabulary.bytes.size());
        if (!copy_literal(row.substr(first + 1, last - first - 1), vocabulary.bytes))
            fail(line, "the token is not a string or bytes literal as Python's repr() writes it");
        const auto size = static_cast<std::uint32_t>(vocabulary.bytes.size()) - offset;
        if (size == 0) fail(line, "the token is empty");
        if (number(row.substr(last + 1)) != size)
            fail(line, "the length is wrong, the token has " + std::to_string(size) + " bytes");
        if (seen[*id]) fail(line, "id " + std::to_string(*id) + " was given before");
        seen[*id] = true;
        vocabulary.tokens.push_back({*id, offset, size});
    }
    return vocabulary;
}

}  // namespace rookery
