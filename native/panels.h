// Weights in panels of 16 rows, and activations in the form that the kernels read: sizes and packing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels.h"

namespace rookery {

// Bytes of one panel, a multiple of 64; columns must be a multiple of 32 for q8, q4 and x8.
//   f32   [columns][16] float
//   f16   [columns][16] half
//   bf16  [columns/2 rounded up][16][2] bf16: neighbours lie together
//   q8    scales [columns/32][16] half, filled up to 64 bytes; then codes [columns/4][16][4] uint8, value + 128
//   q4    scales as in q8; then [columns/32][4][16][4] bytes: byte b of dword j is code 4j+b (low half) and
//         16+4j+b (high half), value + 8, as in a Q4_0 block
//   x8    scales [columns/16][16] float, minimums [columns/16][16] float, then codes [columns/4][16][4] uint8:
//         value = scale * code + minimum. Holds Q4_1, Q5_1 and the K types exactly.
std::size_t panel_bytes(Kind kind, int columns);
inline int panels(int rows) { return (rows + PANEL - 1) / PANEL; }

// Bytes of one row of activations, a multiple of 64.
std::size_t input_bytes(Input input, int columns);

// The kind that holds `dtype` (a storage type's name, "q5_0") without changing a value. Throws std::invalid_argument.
Kind kind_of(std::string_view dtype);
const char* name_of(Kind kind);

// Panels [first, last) of a weight stored row-major as `dtype` [rows, columns] (or, `transposed`, [columns, rows],
// which block types cannot be): `out` is where panel `first` begins. f32 data may also become f16 or bf16 panels,
// which the caller has checked to lose nothing.
void pack(std::string_view dtype, const std::uint8_t* data, int rows, int columns, bool transposed, Kind kind,
          int first, int last, std::uint8_t* out);

}  // namespace rookery
