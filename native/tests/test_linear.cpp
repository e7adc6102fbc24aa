// Packing, encoding and the linear kernels of every set that runs here, against plain loops over decoded numbers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "blocks.h"
#include "kernels.h"
#include "kernels/layout.h"
#include "panels.h"

using namespace rookery;

namespace {

std::string doing;  // what a failure is about

void check(bool good, const char* what, int line) {
    if (good) return;
    std::fprintf(stderr, "line %d: %s (%s)\n", line, what, doing.c_str());
    std::exit(1);
}
#define CHECK(what) check((what), #what, __LINE__)

std::mt19937 random_bits(1);
float uniform() { return static_cast<float>(random_bits() % 200001) / 100000 - 1; }

// Bytes on a boundary of 64, all of them `fill` at first.
struct Bytes {
    explicit Bytes(std::size_t size, int fill = 0xA5)
        : size(size), data(static_cast<std::uint8_t*>(::operator new(size + 64, std::align_val_t{64}))) {
        std::memset(data, fill, size);
    }
    Bytes(Bytes&& other) noexcept : size(other.size), data(std::exchange(other.data, nullptr)) {}
    ~Bytes() { ::operator delete(data, std::align_val_t{64}); }
    std::size_t size;
    std::uint8_t* data;
};

template <class T>
T get(const std::uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

float wide_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

// ---- A weight as a file has it, and its numbers

const char* const DTYPES[] = {"f32",  "f16",  "bf16", "q8_0", "q5_0", "q4_0",
                              "q4_1", "q5_1", "q4_k", "q5_k", "q6_k"};

struct Stored {
    std::string dtype;
    int rows, columns;
    std::vector<std::uint8_t> data;
    std::vector<float> values;
};

void decode(Stored& s) {
    const std::size_t count = static_cast<std::size_t>(s.rows) * s.columns;
    s.values.resize(count);
    if (const BlockType* type = block_type(s.dtype)) {
        for (std::size_t i = 0; i < count / type->elements; ++i)
            type->decode(&s.data[i * type->bytes], &s.values[i * type->elements]);
        return;
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (s.dtype == "f32") s.values[i] = get<float>(&s.data[4 * i]);
        if (s.dtype == "f16") s.values[i] = widen_half(get<std::uint16_t>(&s.data[2 * i]));
        if (s.dtype == "bf16") s.values[i] = wide_bf16(get<std::uint16_t>(&s.data[2 * i]));
    }
}

// Any codes, the extreme ones too, with scales of a decent size.
Stored any_weight(const std::string& dtype, int rows, int columns) {
    Stored s = {dtype, rows, columns, {}, {}};
    const std::size_t count = static_cast<std::size_t>(rows) * columns;
    const auto half = [](std::uint8_t* to, float sign) {
        const auto bits = static_cast<std::uint16_t>(0x2000 + random_bits() % 0x0C00 + (sign < 0 ? 0x8000 : 0));
        std::memcpy(to, &bits, 2);
    };
    if (const BlockType* type = block_type(dtype)) {
        s.data.resize(count / type->elements * type->bytes);
        for (auto& byte : s.data) byte = static_cast<std::uint8_t>(random_bits());
        for (std::size_t i = 0; i < s.data.size(); i += type->bytes) {
            half(&s.data[i + (dtype == "q6_k" ? 208 : 0)], uniform());
            if (kind_of(dtype) == Kind::x8 && dtype != "q6_k") half(&s.data[i + 2], uniform());
            if (dtype == "q8_0" && random_bits() % 4 == 0)
                std::memset(&s.data[i + 2], random_bits() % 2 ? 0x80 : 0x7F, 32);
        }
    } else {
        s.data.resize(count * (dtype == "f32" ? 4 : 2));
        for (std::size_t i = 0; i < count; ++i) {
            const float value = uniform();
            if (dtype == "f32") std::memcpy(&s.data[4 * i], &value, 4);
            if (dtype == "f16") half(&s.data[2 * i], value);
            if (dtype == "bf16") std::memcpy(&s.data[2 * i], reinterpret_cast<const char*>(&value) + 2, 2);
        }
    }
    decode(s);
    return s;
}

// ---- Panels as panels.h describes them

float panel_value(Kind kind, const std::uint8_t* panel, std::size_t columns, std::size_t r, std::size_t c) {
    const std::size_t scales = (columns / 32 * 32 + 63) / 64 * 64;
    const auto half_scale = [&] { return widen_half(get<std::uint16_t>(panel + (c / 32 * 16 + r) * 2)); };
    const auto byte = [&](std::size_t head) { return panel[head + (c / 4 * 16 + r) * 4 + c % 4]; };
    switch (kind) {
        case Kind::f32: return get<float>(panel + (c * 16 + r) * 4);
        case Kind::f16: return widen_half(get<std::uint16_t>(panel + (c * 16 + r) * 2));
        case Kind::bf16: return wide_bf16(get<std::uint16_t>(panel + (c / 2 * 32 + r * 2 + c % 2) * 2));
        case Kind::q8: return half_scale() * static_cast<float>(byte(scales) - 128);
        case Kind::q4: {
            const std::size_t i = c % 32 % 16;
            const int two = panel[scales + ((c / 32 * 4 + i / 4) * 16 + r) * 4 + i % 4];
            return half_scale() * static_cast<float>((c % 32 < 16 ? two & 15 : two >> 4) - 8);
        }
        case Kind::x8: {
            const std::uint8_t* scale = panel + (c / 16 * 16 + r) * 4;
            return get<float>(scale) * static_cast<float>(byte(columns * 8)) + get<float>(scale + columns * 4);
        }
    }
    return 0;
}

Bytes packed(const Stored& s, Kind kind) {
    Bytes out(panel_bytes(kind, s.columns) * panels(s.rows));
    pack(s.dtype, s.data.data(), s.rows, s.columns, false, kind, 0, panels(s.rows), out.data);
    return out;
}

void same_values(const Stored& s, Kind kind, const std::uint8_t* data) {
    const std::size_t bytes = panel_bytes(kind, s.columns);
    CHECK(bytes % 64 == 0);
    for (int r = 0; r < PANEL * panels(s.rows); ++r)
        for (int c = 0; c < s.columns; ++c) {
            const float value = panel_value(kind, data + r / PANEL * bytes, s.columns, r % PANEL, c);
            CHECK(value == (r < s.rows ? s.values[static_cast<std::size_t>(r) * s.columns + c] : 0));
        }
}

void packing_keeps_values() {
    for (const std::string dtype : DTYPES) {
        const BlockType* type = block_type(dtype);
        const int unit = type ? static_cast<int>(type->elements) : 1;
        for (const int rows : {1, 15, 16, 17, 50})
            for (const int times : {1, 2, 3, 33, 64}) {
                if (unit == 256 && times > 3) continue;
                doing = "packing " + dtype + " [" + std::to_string(rows) + ", " + std::to_string(unit * times) + "]";
                const Stored s = any_weight(dtype, rows, unit * times);
                const Kind kind = kind_of(dtype);
                const Bytes whole = packed(s, kind);
                same_values(s, kind, whole.data);
                const std::size_t bytes = panel_bytes(kind, s.columns);
                for (int p = 0; p < panels(rows); ++p) {  // each alone
                    Bytes one(bytes + 64);
                    pack(dtype, s.data.data(), rows, s.columns, false, kind, p, p + 1, one.data);
                    const bool odd = kind == Kind::f16 && s.columns % 2;  // half a line that is nothing
                    CHECK(std::memcmp(one.data, whole.data + p * bytes, bytes - (odd ? 32 : 0)) == 0);
                    CHECK(one.data[bytes] == 0xA5);
                }
            }
    }
}

void packing_transposes() {
    for (const std::string dtype : {"f32", "f16", "bf16"})
        for (const int rows : {1, 16, 37})
            for (const int columns : {1, 2, 31, 64}) {
                doing = "packing the transpose of " + dtype;
                const Stored s = any_weight(dtype, rows, columns);
                Stored t = s;
                const std::size_t size = dtype == "f32" ? 4 : 2;
                for (int r = 0; r < rows; ++r)
                    for (int c = 0; c < columns; ++c)
                        std::memcpy(&t.data[(static_cast<std::size_t>(c) * rows + r) * size],
                                    &s.data[(static_cast<std::size_t>(r) * columns + c) * size], size);
                const Kind kind = kind_of(dtype);
                Bytes out(panel_bytes(kind, columns) * panels(rows));
                pack(dtype, t.data.data(), rows, columns, true, kind, 0, panels(rows), out.data);
                same_values(s, kind, out.data);
            }
}

void packing_narrows_what_fits() {
    for (const std::string narrow : {"f16", "bf16"}) {
        doing = "packing f32 as " + narrow;
        Stored s = {"f32", 64, 1024, {}, {}};
        s.data.resize(4 * 65536);
        for (std::uint32_t i = 0; i < 65536; ++i) {  // every number that there is
            const auto bits = static_cast<std::uint16_t>(i);
            float value = narrow == "f16" ? widen_half(bits) : wide_bf16(bits);
            if (std::isnan(value)) value = 0;
            std::memcpy(&s.data[4 * i], &value, 4);
        }
        decode(s);
        same_values(s, kind_of(narrow), packed(s, kind_of(narrow)).data);
    }
}

template <class Call>
bool refused(Call call) {
    try {
        call();
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

void packing_refuses() {
    doing = "refusals";
    std::uint8_t byte[64] = {};
    CHECK(refused([] { kind_of("q3_k"); }));
    CHECK(refused([] { panel_bytes(Kind::q4, 48); }));
    CHECK(refused([&] { pack("q4_0", byte, 1, 32, true, Kind::q4, 0, 1, byte); }));
    CHECK(refused([&] { pack("q4_0", byte, 1, 32, false, Kind::q8, 0, 1, byte); }));
    CHECK(refused([&] { pack("f16", byte, 1, 32, false, Kind::bf16, 0, 1, byte); }));
    CHECK(refused([&] { pack("q4_k", byte, 1, 128, false, Kind::x8, 0, 1, byte); }));
    CHECK(refused([&] { pack("f32", byte, 16, 1, false, Kind::f32, 0, 2, byte); }));
}

// ---- Encoding

std::uint16_t nearest_bf16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (std::fabs(value) < std::numeric_limits<float>::min()) return static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void encoding_bf16(const Kernels& set) {
    const auto encode = set.encode[static_cast<int>(Input::bf16)];
    for (int columns = 1; columns < 100; ++columns) {
        doing = std::string(set.name) + " bf16, columns " + std::to_string(columns);
        const std::size_t stride = input_bytes(Input::bf16, columns);
        std::vector<float> x(static_cast<std::size_t>(3) * columns);
        for (auto& value : x) value = uniform();
        x[0] = std::bit_cast<float>(0x3F808000u);  // half way
        x.back() = std::numeric_limits<float>::quiet_NaN();
        Bytes out(3 * stride + 64);
        const int cut = columns / 2 / 32 * 32;
        if (cut > 0) encode(out.data, x.data(), columns, 3, columns, 0, cut);
        encode(out.data, x.data() + cut, columns, 3, columns, cut, columns);
        for (int r = 0; r < 3; ++r) {
            const auto* row = reinterpret_cast<const std::uint16_t*>(out.data + r * stride);
            for (int c = 0; c < columns; ++c) {
                const float value = x[static_cast<std::size_t>(r) * columns + c];
                CHECK(std::isnan(value) ? std::isnan(wide_bf16(row[c])) : row[c] == nearest_bf16(value));
            }
            if (columns % 2) CHECK(row[columns] == 0);
            for (std::size_t i = (columns + 1) / 2 * 4; i < stride; ++i) CHECK(out.data[r * stride + i] == 0xA5);
        }
    }
}

const Codes& block_of(const std::uint8_t* row, int c) { return reinterpret_cast<const Codes*>(row)[c / BLOCK]; }

void encoding_codes(const Kernels& set) {
    const auto encode = set.encode[static_cast<int>(Input::codes)];
    constexpr float NAN_ = std::numeric_limits<float>::quiet_NaN(), INF = std::numeric_limits<float>::infinity();
    const float special[] = {0, 1e-45f, 1e-38f, 1e-30f, 3e38f, INF, -INF, NAN_};
    for (int columns = 32; columns <= 256; columns += 32) {
        doing = std::string(set.name) + " codes, columns " + std::to_string(columns);
        const std::size_t stride = input_bytes(Input::codes, columns);
        std::vector<float> x(static_cast<std::size_t>(10) * columns);
        for (auto& value : x) value = uniform() * std::exp(10 * uniform());
        for (int r = 1; r < 9; ++r) {  // a row each: one among others, all of them, and half ways
            const float s = special[r - 1];
            x[static_cast<std::size_t>(r) * columns + columns - 1] = s;
            for (int c = 0; c < 16; ++c) x[static_cast<std::size_t>(r) * columns + c] = c % 2 ? s : -s;
            for (int c = 16; c < 32; ++c) x[static_cast<std::size_t>(r) * columns + c] = 0;
        }
        for (int c = 0; c < 32; ++c)  // ties
            x[static_cast<std::size_t>(9) * columns + c] = c == 31 ? 127 : static_cast<float>(c) - 15.5f;
        Bytes out(10 * stride);
        const int cut = columns / 2 / 32 * 32;
        if (cut > 0) encode(out.data, x.data(), columns, 10, columns, 0, cut);
        encode(out.data, x.data() + cut, columns, 10, columns, cut, columns);
        for (int r = 0; r < 10; ++r)
            for (int c = 0; c < columns; c += BLOCK) {
                const float* from = &x[static_cast<std::size_t>(r) * columns + c];
                const Codes& block = block_of(out.data + r * stride, c);
                float most = 0;
                bool finite = true;
                for (int i = 0; i < BLOCK; ++i) {
                    most = std::max(most, std::fabs(from[i]));
                    finite = finite && std::isfinite(from[i]);
                }
                int sum[2] = {};
                for (int i = 0; i < BLOCK; ++i) sum[i / 16] += block.code[i];
                CHECK(block.sum[0] == static_cast<float>(sum[0]) && block.sum[1] == static_cast<float>(sum[1]));
                CHECK(block.start8 == -128 * (sum[0] + sum[1]) && block.start4 == -8 * (sum[0] + sum[1]));
                if (!finite) {
                    CHECK(std::isnan(block.scale));
                    continue;
                }
                CHECK(block.scale == (most < 1e-35f ? 0 : most / 127));
                for (int i = 0; i < BLOCK; ++i) {
                    CHECK(block.code[i] >= -127);
                    if (block.scale == 0)
                        CHECK(block.code[i] == 0);
                    else
                        CHECK(std::fabs(block.code[i] - static_cast<double>(from[i]) / block.scale) <= 0.50001);
                }
                if (r == 9 && c == 0)
                    for (int i = 0; i < 31; ++i) CHECK(block.code[i] == std::nearbyint(from[i]));
            }
    }
}

// ---- Linear

struct Rows {  // activations as a kernel reads them, and the numbers that this means
    Bytes data;
    std::size_t stride;
    std::vector<double> values;
};

Rows activations(const Kernels& set, Input input, int rows, int columns) {
    std::vector<float> x(static_cast<std::size_t>(rows) * columns);
    for (auto& value : x) value = uniform() * std::exp(3 * uniform());
    for (int i = 0; i < columns; ++i) {  // extreme codes of either sign, all alike
        x[i] = -1;
        if (rows > 1) x[columns + i] = 1;
    }
    const std::size_t stride = input == Input::f32 ? 4 * columns : input_bytes(input, columns);
    Rows out = {Bytes(stride * rows), stride, {}};
    if (input == Input::f32)
        std::memcpy(out.data.data, x.data(), 4 * x.size());
    else
        set.encode[static_cast<int>(input)](out.data.data, x.data(), columns, rows, columns, 0, columns);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
            const std::uint8_t* row = out.data.data + r * stride;
            if (input == Input::codes)
                out.values.push_back(static_cast<double>(block_of(row, c).scale) * block_of(row, c).code[c % BLOCK]);
            else if (input == Input::bf16)
                out.values.push_back(wide_bf16(get<std::uint16_t>(row + 2 * c)));
            else
                out.values.push_back(get<float>(row + 4 * c));
        }
    return out;
}

constexpr std::uint32_t GUARD = 0x7FC0DEAD;  // a NaN of our own

// The kernel's outputs [rows, 16 * (last - first)] for rows from `row` on; writes nothing else.
std::vector<float> outputs(const Kernels& set, const Weight& w, Input input, int first, int last, const Rows& x,
                           int row, int rows) {
    const int width = std::min(w.rows, PANEL * last) - PANEL * first, stride = width + 3;
    std::vector<float> out(static_cast<std::size_t>(rows) * stride + 6, std::bit_cast<float>(GUARD));
    const auto linear = set.linear[static_cast<int>(w.kind)][static_cast<int>(input)];
    linear(w, first, last, x.data.data + row * x.stride, x.stride, rows, out.data() + 3, stride);
    std::vector<float> result;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const std::size_t column = (i + stride - 3) % stride;
        if (i >= 3 && i + 3 < out.size() && column < static_cast<std::size_t>(width))
            result.push_back(out[i]);
        else
            CHECK(std::bit_cast<std::uint32_t>(out[i]) == GUARD);
    }
    return result;
}

bool same_bits(const float* a, const float* b, std::size_t count) { return std::memcmp(a, b, 4 * count) == 0; }

// One weight, `most` rows of activations: right, and the same to the bit however it is cut.
void linear_is_right(const Kernels& set, const Stored& s, Kind kind, Input input, int most,
                     const std::vector<int>& many) {
    doing = std::string(set.name) + " " + s.dtype + " as " + name_of(kind) + " input " +
            std::to_string(static_cast<int>(input)) + " [" + std::to_string(s.rows) + ", " + std::to_string(s.columns) +
            "]";
    const Bytes data = packed(s, kind);
    const Weight w = {kind, s.rows, s.columns, data.data};
    const Rows x = activations(set, input, most, s.columns);
    const int all = panels(s.rows);
    std::vector<float> alone;
    for (int r = 0; r < most; ++r) {
        const auto row = outputs(set, w, input, 0, all, x, r, 1);
        for (int o = 0; o < s.rows; ++o) {
            double sum = 0, size = 0;
            for (int k = 0; k < s.columns; ++k) {
                const double value = s.values[static_cast<std::size_t>(o) * s.columns + k];
                const double factor = x.values[static_cast<std::size_t>(r) * s.columns + k];
                sum += value * factor;
                size += std::fabs(factor) * (kind == Kind::x8 ? std::max(std::fabs(value), 1.0) : std::fabs(value));
            }
            CHECK(std::fabs(row[o] - sum) <= (kind < Kind::q8 ? 2e-6 : 5e-7) * size);
        }
        alone.insert(alone.end(), row.begin(), row.end());
    }
    for (const int rows : many) {
        const int row = static_cast<int>(random_bits() % (most - rows + 1));
        const auto batch = outputs(set, w, input, 0, all, x, row, rows);
        CHECK(same_bits(batch.data(), &alone[static_cast<std::size_t>(row) * s.rows], batch.size()));
        const int first = static_cast<int>(random_bits() % all);
        const int last = first + 1 + static_cast<int>(random_bits() % (all - first));
        const int width = std::min(s.rows, PANEL * last) - PANEL * first;
        const auto part = outputs(set, w, input, first, last, x, row, rows);
        for (int r = 0; r < rows; ++r)
            CHECK(same_bits(&part[static_cast<std::size_t>(r) * width],
                            &alone[static_cast<std::size_t>(row + r) * s.rows + PANEL * first], width));
    }
}

void linear(const Kernels& set) {
    std::vector<int> many = {64};
    for (int rows = 1; rows <= 20; ++rows) many.push_back(rows);
    for (const std::string dtype : DTYPES) {
        const BlockType* type = block_type(dtype);
        std::vector<int> sizes = {288, 1056, 544};
        if (type && type->elements == 256) {
            sizes = {256, 768};
        } else {
            for (int columns = 32; columns <= 160; columns += 32) sizes.push_back(columns);
        }
        if (!type)
            for (int columns = 1; columns <= 33; ++columns) sizes.push_back(columns);
        const Kind kind = kind_of(dtype);
        for (int i = 0; i < INPUTS; ++i) {
            if (set.linear[static_cast<int>(kind)][i] == nullptr) continue;
            for (const int columns : sizes) {
                const bool wide = columns > 160;
                const Stored s = any_weight(dtype, wide ? 50 : 1 + static_cast<int>(random_bits() % 50), columns);
                linear_is_right(set, s, kind, static_cast<Input>(i), wide ? 21 : 64,
                                wide ? std::vector{2, 7, 21} : many);
            }
            const int columns = type ? static_cast<int>(type->elements) : 32;
            for (int rows = 1; rows <= 50; ++rows)
                linear_is_right(set, any_weight(dtype, rows, columns), kind, static_cast<Input>(i), 12, {1, 2, 12});
        }
    }
}

void pairs(const Kernels& set) {
    doing = std::string(set.name) + " pairs of kind and input";
    for (int k = 0; k < KINDS; ++k)
        for (int i = 0; i < INPUTS; ++i) {
            const auto kind = static_cast<Kind>(k);
            const auto input = static_cast<Input>(i);
            const bool fast = kind == Kind::bf16 && input == Input::bf16;
            const bool wanted = kind >= Kind::q8 ? input == Input::codes : input == Input::f32 || fast;
            CHECK((set.linear[k][i] != nullptr) == wanted);
        }
}

}  // namespace

int main() {
    packing_keeps_values();
    packing_transposes();
    packing_narrows_what_fits();
    packing_refuses();
    for (const char* name : {"generic", "avx2", "avx512", "neon"}) {
        const Kernels* set = kernels(name);
        if (set == nullptr) continue;
        encoding_bf16(*set);
        encoding_codes(*set);
        pairs(*set);
        linear(*set);
        std::printf("linear: all is well on %s\n", name);
    }
}
