// Packing moves words: a word of row r that stands at place i of its row goes to place 16 * i + r of the panel.
#include "panels.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include "blocks.h"
#include "kernels/layout.h"

namespace rookery {
namespace {

constexpr const char* NAMES[KINDS] = {"f32", "f16", "bf16", "q8", "q4", "x8"};
constexpr int TILE = 16;  // words of a row that are moved together: a line or two of the source

bool plain(Kind kind) { return kind == Kind::f32 || kind == Kind::f16 || kind == Kind::bf16; }

template <class Word>
Word get(const std::uint8_t* from) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

template <class Word>
void put(std::uint8_t* to, Word word) {
    std::memcpy(to, &word, sizeof word);
}

struct Panel {
    const std::uint8_t* data;  // the whole weight
    int rows, columns;         // of the whole weight
    int row, count;            // the panel's first row, and how many it has
    std::uint8_t* out;
};

// `read(r, i)` gives word i of row r.
template <class Word, class Read>
void move_words(const Panel& p, int words, Read read) {
    for (int begin = 0; begin < words; begin += TILE)
        for (int r = 0; r < p.count; ++r) {
            std::uint8_t* to = p.out + (static_cast<std::size_t>(begin) * PANEL + r) * sizeof(Word);
            const int count = std::min(TILE, words - begin);
            for (int i = 0; i < count; ++i) put<Word>(to + i * PANEL * sizeof(Word), read(p.row + r, begin + i));
        }
}

// ---- f32, f16, bf16. `read(r, c)` gives an element's bits as the panel holds them.

template <class Read>
void move_plain(const Panel& p, Kind kind, Read read) {
    if (kind == Kind::f32) return move_words<std::uint32_t>(p, p.columns, read);
    if (kind == Kind::f16) return move_words<std::uint16_t>(p, p.columns, read);
    const auto pair = [&](int r, int i) {
        return static_cast<std::uint32_t>(read(r, 2 * i)) | static_cast<std::uint32_t>(read(r, 2 * i + 1)) << 16;
    };
    move_words<std::uint32_t>(p, p.columns / 2, pair);
    if (p.columns % 2 == 0) return;
    std::uint8_t* last = p.out + static_cast<std::size_t>(p.columns / 2) * PANEL * 4;
    for (int r = 0; r < p.count; ++r)
        put<std::uint32_t>(last + 4 * r, static_cast<std::uint16_t>(read(p.row + r, p.columns - 1)));
}

template <class Element, class Convert>
void pack_plain(const Panel& p, Kind kind, bool transposed, Convert convert) {
    const std::size_t rows = p.rows, columns = p.columns;
    if (transposed)
        move_plain(p, kind, [&](std::size_t r, std::size_t c) {
            return convert(get<Element>(p.data + (c * rows + r) * sizeof(Element)));
        });
    else
        move_plain(p, kind, [&](std::size_t r, std::size_t c) {
            return convert(get<Element>(p.data + (r * columns + c) * sizeof(Element)));
        });
}

std::uint16_t as_bf16(std::uint32_t bits) { return static_cast<std::uint16_t>(bits >> 16); }

// Of a number that a half holds exactly.
std::uint16_t as_half(std::uint32_t bits) {
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    const std::uint32_t size = bits & 0x7FFFFFFF;
    if (size > 0x7F800000) return sign | 0x7E00;
    if (size == 0x7F800000) return sign | 0x7C00;
    if (size >= 0x38800000) return static_cast<std::uint16_t>(sign | (size - 0x38000000) >> 13);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::bit_cast<float>(size) * 0x1p24f));
}

// ---- q8 and q4

// `read(block, i)` gives dword i of the block's codes as the panel holds them.
template <int WORDS, class Read>
void pack_scaled(const Panel& p, Kind kind, const BlockType& type, Read read) {
    const std::size_t blocks = p.columns / BLOCK;
    std::uint8_t* codes = p.out + head_bytes(kind, p.columns);
    for (std::size_t b = 0; b < blocks; ++b)
        for (int r = 0; r < p.count; ++r) {
            const std::uint8_t* block = p.data + ((p.row + r) * blocks + b) * type.bytes;
            put(p.out + (b * PANEL + r) * 2, get<std::uint16_t>(block));
            std::uint8_t* to = codes + (b * WORDS * PANEL + r) * 4;
            for (int i = 0; i < WORDS; ++i) put<std::uint32_t>(to + i * PANEL * 4, read(block, i));
        }
}

std::uint32_t word_q8_0(const std::uint8_t* block, int i) { return get<std::uint32_t>(block + 2 + 4 * i) ^ 0x80808080; }
std::uint32_t word_q4_0(const std::uint8_t* block, int i) { return get<std::uint32_t>(block + 2 + 4 * i); }

// Four bits to the lowest bits of four bytes.
std::uint32_t spread(std::uint32_t bits) { return (bits & 15) * 0x00204081 & 0x01010101; }

std::uint32_t word_q5_0(const std::uint8_t* block, int i) {
    const auto low = get<std::uint32_t>(block + 6 + i % 4 * 4) >> (i < 4 ? 0 : 4) & 0x0F0F0F0F;
    const auto high = spread(get<std::uint32_t>(block + 2) >> 4 * i);
    return (low | high << 4) + 0x70707070;  // 128 - 16
}

// ---- x8

struct Affine {  // one block: up to 256 codes, and a scale and a minimum for each 16
    std::uint32_t words[64];
    float scale[16], minimum[16];
};

float half_at(const std::uint8_t* from) { return widen_half(get<std::uint16_t>(from)); }

template <int BITS>
void affine_simple(const std::uint8_t* block, Affine& out) {
    for (int i = 0; i < 2; ++i) {
        out.scale[i] = half_at(block);
        out.minimum[i] = half_at(block + 2);
    }
    const std::uint32_t fifth = BITS == 5 ? get<std::uint32_t>(block + 4) : 0;
    block += BITS == 5 ? 8 : 4;
    for (int i = 0; i < 8; ++i) {
        const auto low = get<std::uint32_t>(block + i % 4 * 4) >> (i < 4 ? 0 : 4) & 0x0F0F0F0F;
        out.words[i] = low | spread(fifth >> 4 * i) << 4;
    }
}

template <int BITS>
void affine_k(const std::uint8_t* block, Affine& out) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const std::uint8_t* six = block + 4;
    const std::uint8_t* high = block + 16;
    const std::uint8_t* low = high + (BITS == 5 ? 32 : 0);
    for (int part = 0; part < 8; ++part) {
        const std::uint8_t *a = six + part % 4, *b = a + 4, *c = b + 4;
        const int scale = part < 4 ? *a & 63 : (*c & 15) | *a >> 6 << 4;
        const int minimum = part < 4 ? *b & 63 : *c >> 4 | *b >> 6 << 4;
        out.scale[2 * part] = out.scale[2 * part + 1] = d * static_cast<float>(scale);
        out.minimum[2 * part] = out.minimum[2 * part + 1] = -(dmin * static_cast<float>(minimum));
        for (int i = 0; i < 8; ++i) {
            auto word = get<std::uint32_t>(low + part / 2 * 32 + 4 * i) >> part % 2 * 4 & 0x0F0F0F0F;
            if (BITS == 5) word |= (get<std::uint32_t>(high + 4 * i) >> part & 0x01010101) << 4;
            out.words[8 * part + i] = word;
        }
    }
}

void affine_q6_k(const std::uint8_t* block, Affine& out) {
    const float d = half_at(block + 208);
    for (int part = 0; part < 16; ++part) {
        out.scale[part] = d * static_cast<float>(static_cast<std::int8_t>(block[192 + part]));
        out.minimum[part] = -32 * out.scale[part];
    }
    for (int run = 0; run < 8; ++run) {  // 32 elements, whose codes have their places in common
        const std::uint8_t* low = block + run / 4 * 64 + run % 2 * 32;
        const std::uint8_t* high = block + 128 + run / 4 * 32;
        for (int i = 0; i < 8; ++i)
            out.words[8 * run + i] = (get<std::uint32_t>(low + 4 * i) >> run % 4 / 2 * 4 & 0x0F0F0F0F) |
                                     (get<std::uint32_t>(high + 4 * i) >> run % 4 * 2 & 0x03030303) << 4;
    }
}

void pack_affine(const Panel& p, const BlockType& type, void (*read)(const std::uint8_t*, Affine&)) {
    const std::size_t blocks = p.columns / type.elements, parts = type.elements / 16;
    std::uint8_t* codes = p.out + head_bytes(Kind::x8, p.columns);
    const std::size_t minimums = p.columns / 16 * PANEL * 4;
    Affine block{};
    for (std::size_t b = 0; b < blocks; ++b)
        for (int r = 0; r < p.count; ++r) {
            read(p.data + ((p.row + r) * blocks + b) * type.bytes, block);
            for (std::size_t i = 0; i < parts; ++i) {
                std::uint8_t* to = p.out + ((b * parts + i) * PANEL + r) * 4;
                put(to, block.scale[i]);
                put(to + minimums, block.minimum[i]);
            }
            std::uint8_t* to = codes + (b * parts * 4 * PANEL + r) * 4;
            for (std::size_t i = 0; i < 4 * parts; ++i) put(to + i * PANEL * 4, block.words[i]);
        }
}

[[noreturn]] void refuse(std::string_view dtype, const std::string& why) {
    throw std::invalid_argument("panels of \"" + std::string(dtype) + "\": " + why);
}

void pack_panel(std::string_view dtype, const Panel& p, bool transposed, Kind kind) {
    const auto same = [](auto bits) { return bits; };
    if (dtype == "f32") {
        if (kind == Kind::f32) return pack_plain<std::uint32_t>(p, kind, transposed, same);
        if (kind == Kind::f16) return pack_plain<std::uint32_t>(p, kind, transposed, as_half);
        return pack_plain<std::uint32_t>(p, kind, transposed, as_bf16);
    }
    if (plain(kind)) return pack_plain<std::uint16_t>(p, kind, transposed, same);
    const BlockType& type = *block_type(dtype);
    if (dtype == "q8_0") return pack_scaled<8>(p, kind, type, word_q8_0);
    if (dtype == "q5_0") return pack_scaled<8>(p, kind, type, word_q5_0);
    if (dtype == "q4_0") return pack_scaled<4>(p, kind, type, word_q4_0);
    if (dtype == "q4_1") return pack_affine(p, type, affine_simple<4>);
    if (dtype == "q5_1") return pack_affine(p, type, affine_simple<5>);
    if (dtype == "q4_k") return pack_affine(p, type, affine_k<4>);
    if (dtype == "q5_k") return pack_affine(p, type, affine_k<5>);
    pack_affine(p, type, affine_q6_k);
}

}  // namespace

std::size_t panel_bytes(Kind kind, int columns) {
    if (columns < 0 || (!plain(kind) && columns % BLOCK != 0))
        throw std::invalid_argument("panels of " + std::string(name_of(kind)) + " need a multiple of 32 columns, not " +
                                    std::to_string(columns));
    return size_of_panel(kind, columns);
}

std::size_t input_bytes(Input input, int columns) { return row_bytes(input, columns); }

Kind kind_of(std::string_view dtype) {
    for (const Kind kind : {Kind::f32, Kind::f16, Kind::bf16})
        if (dtype == name_of(kind)) return kind;
    if (dtype == "q8_0" || dtype == "q5_0") return Kind::q8;
    if (dtype == "q4_0") return Kind::q4;
    if (block_type(dtype) == nullptr) refuse(dtype, "no kind holds this type; give it as f32");
    return Kind::x8;
}

const char* name_of(Kind kind) { return NAMES[static_cast<int>(kind)]; }

void pack(std::string_view dtype, const std::uint8_t* data, int rows, int columns, bool transposed, Kind kind,
          int first, int last, std::uint8_t* out) {
    if (kind != kind_of(dtype) && !(dtype == "f32" && plain(kind)))
        refuse(dtype, std::string("kind ") + name_of(kind) + " does not hold this type; ask for " +
                          name_of(kind_of(dtype)));
    if (transposed && !plain(kind)) refuse(dtype, "blocks cannot be transposed; give the weight as f32");
    const BlockType* type = block_type(dtype);
    if (type != nullptr && columns % static_cast<int>(type->elements) != 0)
        refuse(dtype, std::to_string(columns) + " columns are not whole blocks of " + std::to_string(type->elements));
    if (first < 0 || first > last || last > panels(rows))
        refuse(dtype, std::to_string(rows) + " rows have no panels [" + std::to_string(first) + ", " +
                          std::to_string(last) + ")");
    const std::size_t bytes = panel_bytes(kind, columns);
    for (int panel = first; panel < last; ++panel, out += bytes) {
        const int row = PANEL * panel, count = std::min(PANEL, rows - row);
        if (count < PANEL) std::memset(out, 0, bytes);
        const Panel p = {data, rows, columns, row, count, out};
        pack_panel(dtype, p, transposed, kind);
    }
}

}  // namespace rookery
