#include "engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>

#include "panels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rookery {
namespace {

constexpr std::size_t LINE = 64, HUGE_PAGE = std::size_t{1} << 21;
constexpr int SCRATCH = 32 * 1024;  // floats of a thread's local pieces: they should stay in its second cache
constexpr int FEW_ROWS = 8;         // a piece has at least so many rows, if there are that many
constexpr int COLUMNS = 64;         // and so many columns
constexpr int ALONE = 8192;         // elements of a phase without weights that one thread does faster than two
constexpr int MAX_UNITS = 65535;
constexpr int MAX_COLUMNS = 1 << 24, MAX_WIDTH = 1 << 30;  // of a weight and of a lane: places in a panel are ints
constexpr std::size_t FIRST_BYTES = 4096;        // of a weight: from there on the processor sees a stream
constexpr std::size_t MOST_AHEAD = 192 * 1024;   // bytes of a phase that a thread asks for before it begins
constexpr std::size_t STREAM_PART = 256 * 1024;  // bytes that a thread reads at a time in stream()

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

int whole(int n, int of) { return (n + of - 1) / of; }

// How many inputs an operation reads.
int inputs(Op op) {
    switch (op) {
        case Op::add: case Op::subtract: case Op::multiply: case Op::divide: case Op::dot: return 2;
        case Op::fma: case Op::layer_norm: case Op::group_norm: return 3;
        case Op::wkv4: return 4;
        case Op::wkv6: return 5;
        case Op::wkv7: return 6;
        case Op::embed: return 0;
        default: return 1;
    }
}

bool recurrent(Op op) { return op == Op::wkv4 || op == Op::wkv6 || op == Op::wkv7 || op == Op::shift; }

}  // namespace

// Rows [r0, r0 + rows) and columns [c0, c0 + columns) of a lane. `rows` are of the outputs in an outputs phase.
struct Engine::Piece {
    int r0, rows, c0, columns;
    float* scratch;
};

struct Engine::Stream final : Work {
    struct Part {
        const std::uint8_t* data;
        std::size_t bytes;
    };
    Stream(const std::vector<Weight>& weights, const Kernels& kernels) : set(kernels) {
        for (const auto& w : weights) {
            const auto size = panel_bytes(w.kind, w.columns) * static_cast<std::size_t>(panels(w.rows));
            for (std::size_t at = 0; at < size; at += STREAM_PART)
                parts.push_back({w.data + at, std::min(STREAM_PART, size - at)});
        }
    }
    // Several phases if there are more parts than a phase may have units.
    int phases() const override { return std::max(1, whole(static_cast<int>(parts.size()), MAX_UNITS)); }
    int boundary(int phase, int thread, const Sizes& sizes) const override {
        const int from = phase * MAX_UNITS, all = std::min<int>(MAX_UNITS, static_cast<int>(parts.size()) - from);
        return static_cast<int>(static_cast<std::int64_t>(all) * thread / sizes.outputs);
    }
    void execute(int, int phase, int begin, int end) override {
        std::uint64_t found = 0;
        for (int i = phase * MAX_UNITS + begin; i < phase * MAX_UNITS + end; ++i)
            found += set.stream(parts[static_cast<std::size_t>(i)].data, parts[static_cast<std::size_t>(i)].bytes);
        sum.fetch_add(found, std::memory_order_relaxed);
    }

    const Kernels& set;
    std::vector<Part> parts;
    std::atomic<std::uint64_t> sum{0};
};

void Free::operator()(std::uint8_t* p) const { ::operator delete[](p, std::align_val_t{boundary}); }

// Zeros, in huge pages where there are enough of them: a table of small pages costs more than the memory itself.
Memory Engine::allocate(std::size_t bytes) {
    const std::size_t boundary = bytes < HUGE_PAGE ? LINE : HUGE_PAGE, size = (bytes + boundary) / boundary * boundary;
    auto* p = static_cast<std::uint8_t*>(::operator new[](size, std::align_val_t{boundary}));
#if defined(__linux__)
    if (boundary == HUGE_PAGE) (void)madvise(p, size, MADV_HUGEPAGE);
#endif
    std::memset(p, 0, size);
    return Memory(p, Free{boundary});
}

class Engine::Taken {
public:
    explicit Taken(Turn& turn) : turn_(turn) {
        if (turn.caller.load() == std::this_thread::get_id()) throw std::logic_error("a run cannot begin within a run");
        turn.mutex.lock();
        turn.caller.store(std::this_thread::get_id());
    }
    ~Taken() {
        turn_.caller.store({});
        turn_.mutex.unlock();
    }
    Taken(const Taken&) = delete;

private:
    Turn& turn_;
};

void Engine::wake() {
    if (turn_ && turn_->process == this_process()) return;
    (void)turn_.release();  // whoever holds it is in another process
    turn_ = std::make_unique<Turn>();
    turn_->process = this_process();
}

Engine::Engine(int threads, std::size_t state_size, int vocabulary, int max_rows)
    : kernels_(kernels()), threads_(threads), vocabulary_(vocabulary), max_rows_(max_rows), state_size_(state_size) {
    if (threads < 1 || threads > 1024) refuse("threads: 1 to 1024");
    if (vocabulary < 1 || max_rows < 1 || max_rows > MAX_UNITS) refuse("a vocabulary and rows of at least 1");
    wake();
}

Engine::~Engine() = default;

void Engine::building() const {
    if (finished_) refuse("the plan is finished");
}

int Engine::shared(Input kind, int width, std::size_t offset, int rows) {
    building();
    if (width < 1 || rows < max_rows_ || offset % LINE) refuse("a buffer too small, or off a boundary of 64 bytes");
    const auto row = input_bytes(kind, width);
    arena_size_ = std::max(arena_size_, offset + row * static_cast<std::size_t>(rows));
    buffers_.push_back({Buffer::shared, kind, width, offset, row, 0});
    return static_cast<int>(buffers_.size()) - 1;
}

int Engine::local(int width, int slot) {
    building();
    if (width < 1 || slot < 0) refuse("a local piece of no size");
    buffers_.push_back({Buffer::local, Input::f32, width, 0, 0, slot});
    return static_cast<int>(buffers_.size()) - 1;
}

int Engine::logits() {
    building();
    buffers_.push_back({Buffer::logits, Input::f32, vocabulary_, 0, 0, 0});
    return static_cast<int>(buffers_.size()) - 1;
}

int Engine::constant(std::vector<float> values) {
    building();
    constants_.push_back(std::move(values));
    return static_cast<int>(constants_.size()) - 1;
}

int Engine::weight(const Weight& weight) {
    building();
    if (weight.rows < 1 || weight.columns < 1) refuse("a weight of no size");
    if (weight.columns > MAX_COLUMNS) refuse("a weight too wide");
    if (reinterpret_cast<std::uintptr_t>(weight.data) % LINE) refuse("panels must begin on a boundary of 64 bytes");
    weights_.push_back(weight);
    return static_cast<int>(weights_.size()) - 1;
}

int Engine::weights(std::vector<int> by_group) {
    building();
    for (const int id : by_group)
        if (id < -1 || id >= static_cast<int>(weights_.size())) refuse("no such weight");
    if (by_group.empty() || (!choices_.empty() && choices_.front().size() != by_group.size()))
        refuse("a choice of another number of groups");
    choices_.push_back(std::move(by_group));
    return static_cast<int>(choices_.size()) - 1;
}

int Engine::table(Table table) {
    building();
    if (table.rows < 1 || table.columns < 1) refuse("a table of no size");
    table.blocks = block_type(table.dtype);
    if (!table.blocks && table.dtype != "f32" && table.dtype != "f16" && table.dtype != "bf16")
        refuse("a table cannot be " + table.dtype);
    if (table.blocks && table.columns % static_cast<int>(table.blocks->elements)) refuse("a row of no whole blocks");
    const auto columns = static_cast<std::size_t>(table.columns);
    table.row_bytes = table.blocks ? columns / table.blocks->elements * table.blocks->bytes
                                   : columns * (table.dtype == "f32" ? 4 : 2);
    tables_.push_back(std::move(table));
    return static_cast<int>(tables_.size()) - 1;
}

void Engine::phase(bool by_rows, bool outputs) {
    building();
    phases_.push_back({by_rows, outputs, {}, {}, {}});
}

void Engine::lane(int width, int tile, int slots) {
    building();
    if (phases_.empty()) refuse("a lane outside a phase");
    if (width < 1 || tile < 1 || tile % BLOCK || slots < 0) refuse("a lane of no width, or tiles of no whole blocks");
    if (width > MAX_WIDTH || tile > MAX_WIDTH) refuse("a lane too wide");
    phases_.back().lanes.push_back({width, tile, slots, {}});
}

void Engine::check(const Operand& operand, bool output) const {
    const auto index = static_cast<std::size_t>(operand.index);
    const auto& lane = phases_.back().lanes.back();
    if (operand.index < 0 || operand.offset < 0) refuse("a negative operand");
    if (operand.space == Space::buffer) {
        if (index >= buffers_.size()) refuse("no such buffer");
        const auto& buffer = buffers_[index];
        if (buffer.place == Buffer::local && (buffer.slot >= lane.slots || operand.offset || buffer.width != lane.width))
            refuse("a local piece that the lane has no room for");
        if (operand.offset >= buffer.width) refuse("an offset beyond the buffer");
        if (buffer.place == Buffer::logits && !phases_.back().outputs) refuse("logits are of the outputs' rows");
    } else if (operand.space == Space::constant) {
        if (output) refuse("a constant as an output");
        if (index >= constants_.size()) refuse("no such constant");
    } else {
        refuse("an operand is missing");
    }
}

void Engine::step(const Step& step) {
    building();
    if (phases_.empty() || phases_.back().lanes.empty()) refuse("a step outside a lane");
    auto& phase = phases_.back();
    auto& lane = phase.lanes.back();
    check(step.out, true);
    for (int i = 0; i < inputs(step.op); ++i) check(step.in[i], false);
    const auto& out = buffers_[static_cast<std::size_t>(step.out.index)];
    if ((step.op == Op::encode) != (out.kind != Input::f32)) refuse("encode, and it alone, writes codes or bf16");
    if (step.op == Op::encode && (out.width != lane.width || (out.kind == Input::codes && out.width % BLOCK)))
        refuse("encode writes whole rows, codes in whole blocks");
    // Who reads all of a row, and who reads the lane's columns: nothing may lie beyond its operand.
    const auto room = [&](const Operand& o, int columns) {
        const int size = o.space == Space::buffer
                             ? buffers_[static_cast<std::size_t>(o.index)].width
                             : static_cast<int>(constants_[static_cast<std::size_t>(o.index)].size());
        if (columns > size - o.offset) refuse("an operand narrower than its lane");
    };
    room(step.out, lane.width);
    for (int i = 0; i < inputs(step.op); ++i) {
        if (step.op == Op::linear || step.op == Op::choose) continue;
        room(step.in[i], lane.width);
        if (step.in[i].space == Space::buffer && buffers_[static_cast<std::size_t>(step.in[i].index)].kind != Input::f32)
            refuse("only linear reads codes or bf16");
    }
    if (step.op == Op::linear) {
        if (step.number < 0 || static_cast<std::size_t>(step.number) >= weights_.size()) refuse("no such weight");
        const auto& w = weights_[static_cast<std::size_t>(step.number)];
        if (step.in[0].space != Space::buffer) refuse("a linear reads a buffer");
        const auto& in = buffers_[static_cast<std::size_t>(step.in[0].index)];
        if (in.place != Buffer::shared || w.rows != lane.width) refuse("a linear's sizes do not fit");
        if (in.kind == Input::codes && (step.in[0].offset || in.width != w.columns)) refuse("codes of another width");
        if (w.columns > in.width - step.in[0].offset) refuse("a linear's input is too narrow");
        if (!kernels_.linear[static_cast<int>(w.kind)][static_cast<int>(in.kind)])
            refuse(std::string("no linear of ") + name_of(w.kind) + " reads such an input");
    }
    if (step.op == Op::choose) {
        if (step.number < 0 || static_cast<std::size_t>(step.number) >= choices_.size()) refuse("no such choice");
        if (step.in[0].space != Space::buffer) refuse("a linear reads a buffer");
        const auto& in = buffers_[static_cast<std::size_t>(step.in[0].index)];
        if (in.place != Buffer::shared || in.kind != Input::f32) refuse("a choice reads shared float32");
        for (const int id : choices_[static_cast<std::size_t>(step.number)]) {
            if (id < 0) continue;
            const auto& w = weights_[static_cast<std::size_t>(id)];
            if (w.rows > lane.width || w.columns > in.width - step.in[0].offset) refuse("a choice's sizes do not fit");
            if (!kernels_.linear[static_cast<int>(w.kind)][static_cast<int>(Input::f32)])
                refuse(std::string("no linear of ") + name_of(w.kind) + " reads such an input");
        }
    }
    if (step.op == Op::embed) {
        if (step.number < 0 || static_cast<std::size_t>(step.number) >= tables_.size()) refuse("no such table");
        if (tables_[static_cast<std::size_t>(step.number)].columns != lane.width) refuse("a table of another width");
    }
    if (recurrent(step.op)) {
        if (phase.by_rows || phase.outputs) refuse("a recurrence runs by columns, over all rows");
        const std::size_t w = static_cast<std::size_t>(lane.width);
        const std::size_t size = step.op == Op::shift ? w : step.op == Op::wkv4 ? 3 * w : w * static_cast<std::size_t>(step.n);
        if (step.op == Op::wkv4 && out.width != lane.width) refuse("wkv4 writes whole rows");
        if (step.state < 0 || static_cast<std::size_t>(step.state) + size > state_size_) refuse("no such piece of the state");
    }
    const bool heads = step.op == Op::group_norm || step.op == Op::normalize || step.op == Op::dot ||
                       step.op == Op::wkv6 || step.op == Op::wkv7;
    if (heads && step.n > HEAD) refuse("heads of more than 1,024 columns");
    if (heads && (step.n < 1 || lane.width % step.n || (!phase.by_rows && lane.tile % step.n)))
        refuse("tiles of no whole heads");
    if ((step.op == Op::embed || step.op == Op::pick || step.op == Op::layer_norm) && !phase.by_rows)
        refuse("this step runs by rows");
    if (step.op == Op::pick && !phase.outputs) refuse("pick gives the outputs' rows");
    if (step.op == Op::shift && (step.in[0].space != Space::buffer ||
                                 buffers_[static_cast<std::size_t>(step.in[0].index)].place != Buffer::shared))
        refuse("a shift reads a shared buffer");
    if (phase.by_rows && lane.slots) refuse("phases by rows have no local pieces");
    lane.steps.push_back(step);
}

void Engine::finish() {
    if (phases_.empty() || !phases_.front().first.empty()) refuse("there is no plan to finish, or it was finished");
    std::size_t scratch = SCRATCH;
    for (auto& phase : phases_) {
        std::vector<std::int64_t> costs;  // of the units, in bytes that move
        for (const auto& lane : phase.lanes) {
            phase.first.push_back(static_cast<int>(costs.size()));
            std::int64_t cost = static_cast<std::int64_t>(lane.steps.size()) * lane.tile * 4;
            for (const auto& s : lane.steps) {
                const auto read = [&](int id) {
                    const auto& w = weights_[static_cast<std::size_t>(id)];
                    phase.heavy = true, cost += static_cast<std::int64_t>(panel_bytes(w.kind, w.columns)) * lane.tile / PANEL;
                };
                if (s.op == Op::linear) read(s.number);
                if (s.op == Op::choose)
                    for (const int id : choices_[static_cast<std::size_t>(s.number)])
                        if (id >= 0) read(id);
            }
            costs.insert(costs.end(), static_cast<std::size_t>(lane.units()), cost);
            scratch = std::max(scratch, static_cast<std::size_t>(lane.slots) * static_cast<std::size_t>(std::max(lane.tile, COLUMNS)) * FEW_ROWS);
        }
        if (phase.by_rows ? phase.lanes.size() != 1 : costs.empty()) refuse("a phase of no lanes, or several by rows");
        if (!phase.by_rows && costs.size() > MAX_UNITS) refuse("a phase of more than 65,535 tiles");
        const auto all = std::accumulate(costs.begin(), costs.end(), std::int64_t{0});
        std::int64_t sum = 0;
        int unit = 0;
        for (int t = 0; t <= threads_; ++t) {
            const int units = static_cast<int>(costs.size());
            while (unit < units && (t == threads_ || (sum + costs[static_cast<std::size_t>(unit)] / 2) * threads_ < all * t))
                sum += costs[static_cast<std::size_t>(unit++)];
            phase.shares.push_back(unit);
        }
    }
    settle();
    look_ahead();
    arena_ = allocate(arena_size_);
    for (int t = 0; t < threads_; ++t) scratch_.push_back(allocate(scratch * sizeof(float)));
    stream_ = std::make_unique<Stream>(weights_, kernels_);
    team_ = std::make_unique<Team>(threads_, std::max(phases(), stream_->phases()));
    finished_ = true;
}

// Constants on lines of their own, one behind the other.
void Engine::settle() {
    std::size_t size = 0;
    const auto room = [](const std::vector<float>& c) { return (c.size() * sizeof(float) + LINE - 1) / LINE * LINE; };
    for (const auto& c : constants_) size += room(c);
    constant_memory_ = allocate(size);
    auto* at = constant_memory_.get();
    for (auto& c : constants_) {
        std::memcpy(at, c.data(), c.size() * sizeof(float));
        constant_.push_back(reinterpret_cast<const float*>(at));
        at += room(c);
    }
    constants_.clear();
}

// After a phase with weights, which the memory's speed bounds, come small ones that would each wait for constants and
// states to arrive: whoever is through asks for them all, up to the next phase with weights and its first lines.
void Engine::look_ahead() {
    soon_.assign(phases_.size() * static_cast<std::size_t>(threads_), {});
    for (std::size_t p = 0; p < phases_.size(); ++p) {
        if (!phases_[p].heavy) continue;
        for (int t = 0; t < threads_; ++t) {
            auto& soon = soon_[p * static_cast<std::size_t>(threads_) + static_cast<std::size_t>(t)];
            for (std::size_t q = p + 1; q < phases_.size(); ++q) {
                need(phases_[q], t, soon);
                if (phases_[q].heavy) break;
            }
        }
    }
}

// What a thread reads in its share of a phase when there is one row.
void Engine::need(const Phase& phase, int thread, Soon& soon) const {
    const bool whole = alone(phase, {1, 1});
    if (whole && thread > 0) return;
    std::size_t sum = 0;
    const auto add = [&](const void* data, std::size_t offset, std::size_t bytes) {
        for (const auto& part : soon.parts)
            if (part.data == data && part.offset == offset) return;
        if ((sum += bytes) <= MOST_AHEAD) soon.parts.push_back({static_cast<const std::uint8_t*>(data), offset, bytes});
    };
    for (std::size_t i = 0; i < phase.lanes.size(); ++i) {
        const auto& lane = phase.lanes[i];
        int c0 = 0, c1 = lane.width;
        if (!whole) {
            const int begin = phase.shares[static_cast<std::size_t>(thread)], end = phase.shares[static_cast<std::size_t>(thread) + 1];
            const int from = std::max(begin - phase.first[i], 0), to = std::min(end - phase.first[i], lane.units());
            if (from >= to) continue;
            c0 = from * lane.tile, c1 = std::min(to * lane.tile, lane.width);
        }
        const auto columns = static_cast<std::size_t>(c1 - c0);
        for (const auto& step : lane.steps) {
            if (step.op == Op::linear) {
                const auto& w = weights_[static_cast<std::size_t>(step.number)];
                const auto panel = panel_bytes(w.kind, w.columns);
                add(w.data + static_cast<std::size_t>(c0 / PANEL) * panel, 0, std::min(FIRST_BYTES, panel));
            }
            for (int k = 0; k < inputs(step.op); ++k)
                if (step.in[k].space == Space::constant)
                    add(constant_[static_cast<std::size_t>(step.in[k].index)] + step.in[k].offset + c0, 0, columns * 4);
            const auto place = static_cast<std::size_t>(step.state);
            const auto n = static_cast<std::size_t>(step.n), from = static_cast<std::size_t>(c0);
            if (step.op == Op::shift) add(nullptr, (place + from) * 4, columns * 4);
            if (step.op == Op::wkv6 || step.op == Op::wkv7) add(nullptr, (place + from * n) * 4, columns * n * 4);
        }
    }
}

void Engine::ahead(int thread, int phase) {
    const auto* state = reinterpret_cast<const std::uint8_t*>(only_.load(std::memory_order_relaxed));
    if (!state) return;
    for (const auto& part : soon_[static_cast<std::size_t>(phase * threads_ + thread)].parts) {
        const auto* from = (part.data ? part.data : state) + part.offset;
        for (std::size_t i = 0; i < part.bytes; i += LINE) __builtin_prefetch(from + i, 0, 2);
    }
}

std::size_t Engine::weight_bytes() const {
    std::size_t sum = 0;
    for (const auto& w : weights_) sum += panel_bytes(w.kind, w.columns) * static_cast<std::size_t>(panels(w.rows));
    return sum;
}

// Whether one thread does a small phase without weights as a single unit: its values would have to travel between the
// caches of several, which takes longer. Judged by the width of the first lane.
bool Engine::alone(const Phase& phase, const Sizes& sizes) const {
    const std::int64_t rows = phase.outputs ? sizes.outputs : sizes.rows;
    return !phase.heavy && rows * phase.lanes.front().width <= ALONE;
}

int Engine::boundary(int phase, int thread, const Sizes& sizes) const {
    const auto& p = phases_[static_cast<std::size_t>(phase)];
    if (alone(p, sizes)) return thread > 0;
    if (!p.by_rows) return p.shares[static_cast<std::size_t>(thread)];
    return (p.outputs ? sizes.outputs : sizes.rows) * thread / threads_;
}

bool Engine::run(const std::int64_t* ids, const std::vector<int>& lengths, const std::vector<float*>& states,
                 float* logits, bool every, bool (*poll)(), double* times, const std::vector<int>& groups) {
    if (!finished_) refuse("the plan is not finished");
    if (!groups.empty() && groups.size() != lengths.size()) refuse("one group a sequence is wanted");
    const int known = choices_.empty() ? 0 : static_cast<int>(choices_.front().size());
    for (const int group : groups)
        if (group < -1 || group >= known) refuse("no such group");
    const Taken turn(*turn_);
    rows_.ids = ids;
    rows_.states = states;
    rows_.logits = logits;
    rows_.groups = groups;
    rows_.sequence.clear(), rows_.first.clear(), rows_.last.clear(), rows_.outputs.clear();
    if (lengths.size() != states.size()) refuse("one state a sequence is wanted");
    for (std::size_t b = 0; b < lengths.size(); ++b) {
        if (lengths[b] < 1) refuse("a sequence without rows");
        for (int t = 0; t < lengths[b]; ++t) {
            const bool last = t + 1 == lengths[b];
            if (every || last) rows_.outputs.push_back(static_cast<int>(rows_.sequence.size()));
            rows_.sequence.push_back(static_cast<int>(b));
            rows_.first.push_back(t == 0);
            rows_.last.push_back(last);
        }
        if (rows_.sequence.size() > static_cast<std::size_t>(max_rows_)) refuse("more rows than a run takes");
    }
    const int rows = static_cast<int>(rows_.sequence.size());
    for (int r = 0; r < rows; ++r)
        for (const auto& t : tables_)
            if (ids[r] < 0 || ids[r] >= t.rows) refuse("a token outside the vocabulary");
    if (!rows) return true;
    only_.store(rows == 1 ? states.front() : nullptr, std::memory_order_relaxed);
    return team_->run(*this, {rows, static_cast<int>(rows_.outputs.size())}, poll, times);
}

double Engine::stream() {
    if (!finished_) refuse("the plan is not finished");
    const Taken turn(*turn_);
    const auto begin = std::chrono::steady_clock::now();
    team_->run(*stream_, {0, threads_}, nullptr);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<float> Engine::read(int buffer, int rows) const {
    if (!finished_) refuse("the plan is not finished");
    const auto& b = buffers_.at(static_cast<std::size_t>(buffer));
    if (b.place != Buffer::shared || b.kind != Input::f32 || rows < 0 || rows > max_rows_)
        refuse("only shared float32 buffers can be read");
    std::vector<float> values(static_cast<std::size_t>(rows) * static_cast<std::size_t>(b.width));
    for (int r = 0; r < rows; ++r)
        std::memcpy(values.data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(b.width), bytes(b, r),
                    static_cast<std::size_t>(b.width) * sizeof(float));
    return values;
}

void Engine::execute(int thread, int index, int begin, int end) {
    const auto& phase = phases_[static_cast<std::size_t>(index)];
    const Sizes sizes{static_cast<int>(rows_.sequence.size()), static_cast<int>(rows_.outputs.size())};
    if (alone(phase, sizes)) {
        begin = 0;
        end = phase.by_rows ? (phase.outputs ? sizes.outputs : sizes.rows) : phase.first.back() + phase.lanes.back().units();
    }
    if (phase.by_rows) {
        const auto& lane = phase.lanes.front();
        for (const auto& step : lane.steps) apply(step, {begin, end - begin, 0, lane.width, nullptr}, phase.outputs);
        return;
    }
    for (std::size_t i = 0; i < phase.lanes.size() && phase.first[i] < end; ++i) {
        const auto& lane = phase.lanes[i];
        const int from = std::max(begin - phase.first[i], 0), to = std::min(end - phase.first[i], lane.units());
        if (from < to) chain(thread, phase, lane, from * lane.tile, std::min(to * lane.tile, lane.width));
    }
}

// A lane's steps on columns [c0, c1) of all rows, piece by piece, so that local pieces fit the scratch.
void Engine::chain(int thread, const Phase& phase, const Lane& lane, int c0, int c1) {
    const int all = static_cast<int>(phase.outputs ? rows_.outputs.size() : rows_.sequence.size());
    int rows = all, columns = c1 - c0;
    if (lane.slots) {
        const int room = SCRATCH / lane.slots, few = std::min(all, FEW_ROWS), least = std::max(lane.tile, COLUMNS);
        if (phase.heavy) {  // rows first: a piece of a weight serves all that are there
            rows = std::clamp(room / least, few, all);
            if (rows > 12 && rows < all) rows = rows / 12 * 12;  // whole blocks of the matrix kernels
        } else {
            rows = few;
        }
        columns = std::min(columns, std::max(least, room / rows / lane.tile * lane.tile));
    }
    auto* scratch = reinterpret_cast<float*>(scratch_[static_cast<std::size_t>(thread)].get());
    for (int c = c0; c < c1; c += columns)
        for (int r = 0; r < all; r += rows)
            for (const auto& step : lane.steps)
                apply(step, {r, std::min(rows, all - r), c, std::min(columns, c1 - c), scratch}, phase.outputs);
}

float* Engine::floats(const Operand& operand, const Piece& piece, Stride& stride) const {
    const auto index = static_cast<std::size_t>(operand.index);
    if (operand.space == Space::constant) {
        stride = 0;
        return const_cast<float*>(constant_[index]) + operand.offset + piece.c0;  // never an output
    }
    const auto& buffer = buffers_[index];
    if (buffer.place == Buffer::local) {
        stride = piece.columns;
        return piece.scratch + static_cast<Stride>(buffer.slot) * piece.rows * piece.columns;
    }
    if (buffer.place == Buffer::logits) {
        stride = vocabulary_;
        return rows_.logits + static_cast<Stride>(piece.r0) * vocabulary_ + operand.offset + piece.c0;
    }
    stride = static_cast<Stride>(buffer.row_bytes / sizeof(float));
    return reinterpret_cast<float*>(bytes(buffer, piece.r0)) + operand.offset + piece.c0;
}

void Engine::apply(const Step& step, const Piece& piece, bool outputs) {
    const auto& k = kernels_;
    const int rows = piece.rows, columns = piece.columns;
    if (step.op == Op::encode) {
        const auto& out = buffers_[static_cast<std::size_t>(step.out.index)];
        Stride sx;
        const float* x = floats(step.in[0], piece, sx);
        k.encode[static_cast<int>(out.kind)](bytes(out, piece.r0), x, sx, rows, out.width, piece.c0, piece.c0 + columns);
        return;
    }
    Stride so, sa = 0, sb = 0, sc = 0;
    float* out = floats(step.out, piece, so);
    if (step.op == Op::linear) {
        const auto& in = buffers_[static_cast<std::size_t>(step.in[0].index)];
        const auto& w = weights_[static_cast<std::size_t>(step.number)];
        const auto* x = bytes(in, piece.r0) + static_cast<std::size_t>(step.in[0].offset) * (in.kind == Input::f32 ? 4 : 2);
        k.linear[static_cast<int>(w.kind)][static_cast<int>(in.kind)](w, piece.c0 / PANEL, whole(piece.c0 + columns, PANEL), x,
                                                                   in.row_bytes, rows, out, so);
        return;
    }
    if (step.op == Op::choose) return choose(step, piece, outputs);
    if (step.op == Op::embed) return embed(step, piece);
    if (step.op == Op::shift) return shift(step, piece);
    if (recurrent(step.op)) return recur(step, piece);
    if (step.op == Op::pick) {
        for (int q = 0; q < rows; ++q) {
            const Piece one{rows_.outputs[static_cast<std::size_t>(piece.r0 + q)], 1, piece.c0, columns, nullptr};
            std::memcpy(out + q * so, floats(step.in[0], one, sa), static_cast<std::size_t>(columns) * sizeof(float));
        }
        return;
    }
    const float* a = floats(step.in[0], piece, sa);
    const float* b = inputs(step.op) > 1 ? floats(step.in[1], piece, sb) : nullptr;
    const float* c = inputs(step.op) > 2 ? floats(step.in[2], piece, sc) : nullptr;
    switch (step.op) {
        case Op::fma: return k.fma(out, so, a, sa, b, sb, c, sc, rows, columns);
        case Op::layer_norm: return k.layer_norm(out, so, a, sa, b, c, step.eps, rows, columns);
        case Op::group_norm: return k.group_norm(out, so, a, sa, b, c, step.eps, rows, columns, step.n);
        case Op::normalize: return k.normalize(out, so, a, sa, rows, columns, step.n);
        case Op::dot: return k.dot(out, so, a, sa, b, sb, rows, columns, step.n);
        case Op::copy:
            for (int r = 0; r < rows; ++r) std::memcpy(out + r * so, a + r * sa, static_cast<std::size_t>(columns) * sizeof(float));
            return;
        default: break;
    }
    if (step.op <= Op::divide) return k.binary[static_cast<int>(step.op)](out, so, a, sa, b, sb, rows, columns);
    k.unary[static_cast<int>(step.op) - static_cast<int>(Op::negative)](out, so, a, sa, rows, columns);
}

// The rows of one group after those of another, each with that group's weight. What lies beyond a narrower weight's
// columns is not written: whoever reads it is as narrow.
void Engine::choose(const Step& step, const Piece& piece, bool outputs) {
    const auto& in = buffers_[static_cast<std::size_t>(step.in[0].index)];
    const auto* x = bytes(in, piece.r0) + static_cast<std::size_t>(step.in[0].offset) * 4;
    Stride so;
    float* out = floats(step.out, piece, so);
    const auto group = [&](int r) {
        const auto place = static_cast<std::size_t>(piece.r0 + r);
        const auto row = outputs ? static_cast<std::size_t>(rows_.outputs[place]) : place;
        return rows_.groups.empty() ? -1 : rows_.groups[static_cast<std::size_t>(rows_.sequence[row])];
    };
    for (int r = 0, end = 0; r < piece.rows; r = end) {
        const int mine = group(r);
        for (end = r + 1; end < piece.rows && group(end) == mine;) ++end;
        const int id = mine < 0 ? -1 : choices_[static_cast<std::size_t>(step.number)][static_cast<std::size_t>(mine)];
        if (id < 0) {
            for (int i = r; i < end; ++i) std::fill_n(out + i * so, piece.columns, -0.0f);
            continue;
        }
        const auto& w = weights_[static_cast<std::size_t>(id)];
        const int first = piece.c0 / PANEL, last = std::min(whole(piece.c0 + piece.columns, PANEL), panels(w.rows));
        if (first < last)
            kernels_.linear[static_cast<int>(w.kind)][static_cast<int>(Input::f32)](
                w, first, last, x + static_cast<std::size_t>(r) * in.row_bytes, in.row_bytes, end - r, out + r * so, so);
    }
}

void Engine::embed(const Step& step, const Piece& piece) {
    const auto& table = tables_[static_cast<std::size_t>(step.number)];
    Stride so;
    float* out = floats(step.out, piece, so);
    for (int r = 0; r < piece.rows; ++r, out += so) {
        const auto* row = table.data + static_cast<std::size_t>(rows_.ids[piece.r0 + r]) * table.row_bytes;
        if (table.blocks) {
            for (int i = 0; i * static_cast<int>(table.blocks->elements) < table.columns; ++i)
                table.blocks->decode(row + static_cast<std::size_t>(i) * table.blocks->bytes, out + static_cast<std::size_t>(i) * table.blocks->elements);
        } else if (table.dtype == "f32") {
            std::memcpy(out, row, table.row_bytes);
        } else {
            for (int i = 0; i < table.columns; ++i) {
                std::uint16_t half;
                std::memcpy(&half, row + 2 * i, 2);
                out[i] = table.dtype == "f16" ? widen_half(half) : std::bit_cast<float>(std::uint32_t{half} << 16);
            }
        }
    }
}

// out = the row before in the sequence: the state's piece for the first, which the last row replaces.
void Engine::shift(const Step& step, const Piece& piece) {
    const auto size = static_cast<std::size_t>(piece.columns) * sizeof(float);
    Stride so, sx;
    float* out = floats(step.out, piece, so);
    const float* x = floats(step.in[0], piece, sx);
    for (int r = 0; r < piece.rows; ++r, out += so, x += sx) {
        const auto row = static_cast<std::size_t>(piece.r0 + r);
        float* carry = rows_.states[static_cast<std::size_t>(rows_.sequence[row])] + step.state + piece.c0;
        std::memcpy(out, rows_.first[row] ? carry : x - sx, size);
        if (rows_.last[row]) std::memcpy(carry, x, size);
    }
}

// The recurrences, for each run of rows of one sequence and each head.
void Engine::recur(const Step& step, const Piece& piece) {
    for (int r = 0, next; r < piece.rows; r = next) {
        const int sequence = rows_.sequence[static_cast<std::size_t>(piece.r0 + r)];
        for (next = r + 1; next < piece.rows && rows_.sequence[static_cast<std::size_t>(piece.r0 + next)] == sequence;) ++next;
        float* state = rows_.states[static_cast<std::size_t>(sequence)] + step.state;
        Stride s[Step::INPUTS + 1];
        float* p[Step::INPUTS + 1];
        p[0] = floats(step.out, piece, s[0]);
        for (int i = 0; i < inputs(step.op); ++i) p[i + 1] = floats(step.in[i], piece, s[i + 1]);
        for (int i = 0; i <= inputs(step.op); ++i) p[i] += r * s[i];
        const int rows = next - r;
        if (step.op == Op::wkv4) {
            const int width = buffers_[static_cast<std::size_t>(step.out.index)].width;
            float* top = state + piece.c0;
            kernels_.wkv4(p[0], s[0], p[1], s[1], p[2], s[2], p[3], p[4], top, top + width, top + 2 * width, rows, piece.columns);
            continue;
        }
        const int n = step.n;
        for (int c = 0; c < piece.columns; c += n) {
            float* head = state + static_cast<Stride>(piece.c0 + c) * n;
            if (step.op == Op::wkv6)
                kernels_.wkv6(p[0] + c, s[0], p[1] + c, s[1], p[2] + c, s[2], p[3] + c, s[3], p[4] + c, s[4], p[5] + c, head, rows, n);
            else
                kernels_.wkv7(p[0] + c, s[0], p[1] + c, s[1], p[2] + c, s[2], p[3] + c, s[3], p[4] + c, s[4], p[5] + c, s[5],
                              p[6] + c, s[6], head, rows, n);
        }
    }
}

}  // namespace rookery
