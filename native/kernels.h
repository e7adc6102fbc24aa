// The inner loops, once per instruction set: every set fills one table of them, and `kernels()` chooses a table.
//
// The law of rows: what a kernel writes for a row depends on that row alone, to the bit, however many rows it is given
// and however its caller cuts rows and columns into calls. Strides are in elements of the pointer's type unless they
// say bytes; a stride of 0 gives every row the same operand.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rookery {

using Stride = std::ptrdiff_t;

// How a weight lies in memory: panels of 16 rows (outputs), in each of them all columns (inputs), so that one load
// serves 16 outputs. The last panel is filled up with rows of zeros. Layouts: panels.h.
enum class Kind : std::uint8_t { f32, f16, bf16, q8, q4, x8 };
constexpr int KINDS = 6;
constexpr int PANEL = 16;  // rows of a panel
constexpr int BLOCK = 32;  // columns that share a scale
constexpr int HEAD = 1024; // elements of a head at most

// What a linear kernel reads for a row: float, bf16, or 8-bit codes with a scale for every 32 columns.
// f32 and f16 weights read f32; bf16 weights read bf16 (fast) or f32 (exact); q8, q4 and x8 read codes.
enum class Input : std::uint8_t { f32, bf16, codes };
constexpr int INPUTS = 3;

struct Weight {
    Kind kind;
    int rows, columns;        // outputs, inputs
    const std::uint8_t* data; // panel_bytes(kind, columns) for each 16 rows, on a boundary of 64 bytes
};

// Binary and unary steps on elements.
enum class Binary : std::uint8_t { add, subtract, multiply, divide };
enum class Unary : std::uint8_t { negative, exp, tanh, sigmoid, silu, relu, square };
constexpr int BINARIES = 4, UNARIES = 7;

struct Backward4;  // training.h
struct Backward6;
struct Backward7;

struct Kernels {
    const char* name;  // generic, avx2, avx512, neon

    // out[r][c] = a op b, for `rows` rows of `columns` elements.
    void (*binary[BINARIES])(float* out, Stride so, const float* a, Stride sa, const float* b, Stride sb, int rows,
                             int columns);
    void (*unary[UNARIES])(float* out, Stride so, const float* a, Stride sa, int rows, int columns);
    // out = a + b * c
    void (*fma)(float* out, Stride so, const float* a, Stride sa, const float* b, Stride sb, const float* c, Stride sc,
                int rows, int columns);

    // Per row of `columns`: (x - mean) / sqrt(var + eps) * weight + bias.
    void (*layer_norm)(float* out, Stride so, const float* x, Stride sx, const float* weight, const float* bias,
                       float eps, int rows, int columns);
    // The same for each head of `n` elements within the columns (columns % n == 0); weight and bias are [columns].
    void (*group_norm)(float* out, Stride so, const float* x, Stride sx, const float* weight, const float* bias,
                       float eps, int rows, int columns, int n);
    // Each head divided by max(its L2 norm, 1e-12).
    void (*normalize)(float* out, Stride so, const float* x, Stride sx, int rows, int columns, int n);
    // The inner product of each head, written to all n of its elements.
    void (*dot)(float* out, Stride so, const float* a, Stride sa, const float* b, Stride sb, int rows, int columns,
                int n);

    // Recurrences over consecutive rows of one sequence (rows are time). decay is its logarithm.
    // wkv4: `columns` channels; top, below, most are the state [columns] each.
    void (*wkv4)(float* y, Stride sy, const float* k, Stride sk, const float* v, Stride sv, const float* decay,
                 const float* bonus, float* top, float* below, float* most, int rows, int columns);
    // wkv6 (and 5, with a decay stride of 0): one head of n; state [n, n] is [key][value].
    void (*wkv6)(float* y, Stride sy, const float* r, Stride sr, const float* k, Stride sk, const float* v, Stride sv,
                 const float* decay, Stride sd, const float* bonus, float* state, int rows, int n);
    void (*wkv7)(float* y, Stride sy, const float* r, Stride sr, const float* decay, Stride sd, const float* k,
                 Stride sk, const float* v, Stride sv, const float* a, Stride sa, const float* b, Stride sb,
                 float* state, int rows, int n);

    // Gradients of a job's `unit`th of batch * heads (wkv4: batch * slices of 16 channels); those summed over the
    // batch are of its sequence alone. `scratch` is of so many floats.
    void (*wkv4_backward)(const Backward4& job, int unit, float* scratch);
    std::size_t (*scratch4)(int time);
    void (*wkv6_backward)(const Backward6& job, int unit, float* scratch);
    std::size_t (*scratch6)(int time, int n);
    void (*wkv7_backward)(const Backward7& job, int unit, float* scratch);
    std::size_t (*scratch7)(int time, int n);

    // Write columns [begin, end) of rows of activations as bf16 or codes (not f32); x points at column `begin`.
    // A row of `out` takes input_bytes(input, columns); begin is a multiple of 32, end too unless it is `columns`.
    void (*encode[INPUTS])(std::uint8_t* out, const float* x, Stride sx, int rows, int columns, int begin, int end);

    // out[r][c - 16 * first] = sum_k w[c][k] x[r][k] for the outputs c of panels [first, last), fewer than 16 in the
    // last panel of the weight where w.rows says so. A row of x is `x_bytes` apart (any for f32, else input_bytes).
    void (*linear[KINDS][INPUTS])(const Weight& w, int first, int last, const std::uint8_t* x, std::size_t x_bytes,
                                  int rows, float* out, Stride so);

    // Reads `bytes` as fast as this set can and gives back something that depends on all of them: the bare stream.
    std::uint64_t (*stream)(const std::uint8_t* data, std::size_t bytes);
};

// The best set for this processor, or the one that ROOKERY_ISA names. Throws std::invalid_argument, listing those that
// run here, for a name that is unknown or does not run.
const Kernels& kernels();
const Kernels* kernels(const char* name);  // nullptr if this build or this processor lacks it

}  // namespace rookery
