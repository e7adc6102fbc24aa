// The engine: a plan (phases of lanes of steps over fixed buffers) and its execution by a team of threads.
//
// The plan is made elsewhere; nothing here knows a version of RWKV or a file format. Rows are the tokens of all
// sequences of a run, packed; the law of rows holds because every kernel keeps it. Offsets and widths are in elements.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "blocks.h"
#include "kernels.h"
#include "threads.h"

namespace rookery {

enum class Space : std::uint8_t { buffer, constant, none };

struct Operand {
    Space space = Space::none;
    int index = 0, offset = 0;  // offset: columns
};

enum class Op : std::uint8_t {
    add, subtract, multiply, divide,                       // as Binary
    negative, exp, tanh, sigmoid, silu, relu, square,      // as Unary
    fma, layer_norm, group_norm, normalize, dot, shift, wkv4, wkv6, wkv7, linear, encode, embed, pick, copy,
    choose,  // a linear whose weight goes by the group of the row's sequence; where there is none, -0, which adds nothing
};

struct Step {
    static constexpr int INPUTS = 6;
    Op op;
    Operand out, in[INPUTS];
    int number = -1;  // of the weight (linear), the weights (choose) or the table (embed)
    int state = -1;   // where the piece begins in a sequence's state
    int n = 0;        // head size
    float eps = 0;
};

// A chain of steps over the same columns, cut into tiles that threads work on alone.
struct Lane {
    int width, tile, slots;
    std::vector<Step> steps;
    int units() const { return (width + tile - 1) / tile; }
};

struct Phase {
    bool by_rows;  // a unit is a row instead of a tile of a lane
    bool outputs;  // over the rows that give logits only
    std::vector<Lane> lanes;
    std::vector<int> first, shares;  // by columns: each lane's first unit, and where the threads' shares begin
    bool heavy = false;              // there are weights to read
};

struct Buffer {
    enum Place : std::uint8_t { shared, local, logits } place;
    Input kind = Input::f32;
    int width = 0;
    std::size_t offset = 0, row_bytes = 0;  // in the arena
    int slot = 0;                           // among a lane's local pieces
};

// An embedding table, its rows as stored.
struct Table {
    std::string dtype;
    int rows, columns;
    const std::uint8_t* data;
    const BlockType* blocks;  // nullptr for f32, f16 and bf16
    std::size_t row_bytes;
};

// Memory on a boundary.
struct Free {
    explicit Free(std::size_t to = 64) : boundary(to) {}
    std::size_t boundary;
    void operator()(std::uint8_t* p) const;
};
using Memory = std::unique_ptr<std::uint8_t[], Free>;

class Engine final : public Work {
public:
    Engine(int threads, std::size_t state_size, int vocabulary, int max_rows);
    ~Engine() override;

    // Building. All throw std::invalid_argument for what does not fit together; none may follow finish().
    int shared(Input kind, int width, std::size_t offset, int rows);
    int local(int width, int slot);
    int logits();
    int constant(std::vector<float> values);
    int weight(const Weight& weight);
    int weights(std::vector<int> by_group);  // of a weight each, or -1; every choice has as many groups
    int table(Table table);
    void phase(bool by_rows, bool outputs);
    void lane(int width, int tile, int slots);
    void step(const Step& step);
    void finish();

    // Rows [R] of `lengths.size()` sequences whose states are updated in place; logits [Q, vocabulary] of every row
    // or of each sequence's last. False if `poll` stopped it: states and logits are then spoilt. Callers take turns.
    // `groups`: of each sequence; -1, or none given: those that choose no weight.
    // `times` [phases], where given, gets the seconds of each phase. Throws std::logic_error for a call out of `poll`.
    bool run(const std::int64_t* ids, const std::vector<int>& lengths, const std::vector<float*>& states,
             float* logits, bool every, bool (*poll)(), double* times = nullptr, const std::vector<int>& groups = {});

    // To be called before a run, by one thread at a time: in a child of fork nobody else is inside.
    void wake();

    // Reads all weights once with all threads; gives the seconds it took.
    double stream();

    // What a shared float32 buffer held after the last run, row-major [rows, width].
    std::vector<float> read(int buffer, int rows) const;

    const Kernels& set() const { return kernels_; }
    int threads() const { return threads_; }
    int max_rows() const { return max_rows_; }
    std::size_t state_size() const { return state_size_; }
    int vocabulary() const { return vocabulary_; }
    std::size_t weight_bytes() const;
    std::size_t arena_bytes() const { return arena_size_; }
    int buffer_width(int buffer) const { return buffers_.at(static_cast<std::size_t>(buffer)).width; }

    int phases() const override { return static_cast<int>(phases_.size()); }
    int boundary(int phase, int thread, const Sizes& sizes) const override;
    void execute(int thread, int phase, int begin, int end) override;
    void ahead(int thread, int phase) override;

private:
    static Memory allocate(std::size_t bytes);

    struct Piece;   // the rows and columns that a step works on
    struct Stream;  // the job of stream()
    struct Soon {   // what a thread will need in the phases to come, and the cache should fetch now
        struct Part {
            const std::uint8_t* data;  // nullptr: of the state, from `offset` on
            std::size_t offset, bytes;
        };
        std::vector<Part> parts;
    };
    struct Turn {   // callers take turns
        std::int64_t process;
        std::mutex mutex;
        std::atomic<std::thread::id> caller{};
    };
    class Taken;    // a turn, while it lasts
    struct Rows {   // the present run
        const std::int64_t* ids = nullptr;
        std::vector<int> sequence, outputs;       // of each row; the rows that give logits
        std::vector<int> groups;                  // of each sequence
        std::vector<std::uint8_t> first, last;    // of its sequence?
        std::vector<float*> states;
        float* logits = nullptr;
    };

    void building() const;
    void check(const Operand& operand, bool output) const;
    void look_ahead();
    void settle();
    bool alone(const Phase& phase, const Sizes& sizes) const;
    void need(const Phase& phase, int thread, Soon& soon) const;
    void chain(int thread, const Phase& phase, const Lane& lane, int c0, int c1);
    void apply(const Step& step, const Piece& piece, bool outputs);
    float* floats(const Operand& operand, const Piece& piece, Stride& stride) const;
    std::uint8_t* bytes(const Buffer& buffer, int row) const { return arena_.get() + buffer.offset + static_cast<std::size_t>(row) * buffer.row_bytes; }
    void shift(const Step& step, const Piece& piece);
    void recur(const Step& step, const Piece& piece);
    void embed(const Step& step, const Piece& piece);
    void choose(const Step& step, const Piece& piece, bool outputs);

    const Kernels& kernels_;
    const int threads_, vocabulary_, max_rows_;
    const std::size_t state_size_;
    std::vector<Buffer> buffers_;
    std::vector<std::vector<float>> constants_;
    std::vector<const float*> constant_;  // where they lie after finish(), all in one piece
    Memory constant_memory_;
    std::vector<Weight> weights_;
    std::vector<std::vector<int>> choices_;
    std::vector<Table> tables_;
    std::vector<Phase> phases_;
    std::size_t arena_size_ = 0;
    Memory arena_;
    std::vector<Memory> scratch_;  // a thread's local pieces
    Rows rows_;
    std::vector<Soon> soon_;                    // [phase][thread]
    std::atomic<const float*> only_{nullptr};  // the state of a run that has one sequence
    std::unique_ptr<Stream> stream_;
    std::unique_ptr<Turn> turn_;
    std::unique_ptr<Team> team_;  // last: its threads must be gone before what they work on
    bool finished_ = false;
};

}  // namespace rookery
