#include "training.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace rookery {
namespace {

// Threads of their own for each call, which takes milliseconds: those of a Team would go on spinning for the next run
// on the cores that torch's threads need in between.
template <class Unit>
void share_out(int units, int threads, Unit unit) {
    std::atomic<int> next{0};
    const auto work = [&](int thread) {
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < units;) unit(thread, i);
    };
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads));
    try {
        for (int i = 1; i < threads && i < units; ++i) others.emplace_back(work, i);
    } catch (const std::system_error&) {  // no room for more threads: those there are do it all
    }
    work(0);
    for (auto& other : others) other.join();
}

// So many floats for each thread, on boundaries of a cache line.
class Scratch {
public:
    Scratch(std::size_t floats, int threads)
        : each_((floats + 15) / 16 * 16),
          start_(static_cast<float*>(::operator new(each_ * static_cast<std::size_t>(threads) * sizeof(float),
                                                    std::align_val_t{64}))) {}
    ~Scratch() { ::operator delete(start_, std::align_val_t{64}); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* of(int thread) const { return start_ + each_ * static_cast<std::size_t>(thread); }

private:
    std::size_t each_;
    float* start_;
};

// Calls `row(from, rows)` for each stretch of a sequence without a reset inside, `fresh()` before one that begins anew.
template <class Fresh, class Row>
void stretches(const Extent& e, int sequence, Fresh fresh, Row row) {
    const std::uint8_t* resets = e.resets == nullptr ? nullptr : e.resets + static_cast<Stride>(sequence) * e.time;
    for (int from = 0, to; from < e.time; from = to) {
        for (to = from + 1; to < e.time && (resets == nullptr || resets[to] == 0);) ++to;
        if (resets != nullptr && resets[from] != 0) fresh();
        row(from, to - from);
    }
}

// Where the arrays of a sequence's tokens begin, `row` elements each.
Stride start_of(const Extent& e, int sequence, Stride row) { return static_cast<Stride>(sequence) * e.time * row; }

// The gradient of what all sequences share, [size], from that of each, [batch, size].
void add_up(float* out, const float* each, int batch, std::size_t size) {
    std::fill_n(out, size, 0.0f);
    for (int b = 0; b < batch; ++b)
        for (std::size_t i = 0; i < size; ++i) out[i] += each[static_cast<std::size_t>(b) * size + i];
}

std::size_t count(int n) { return static_cast<std::size_t>(n); }

}  // namespace

void run(const Forward4& job, int threads, const Kernels& table) {
    const auto& e = job.extent;
    const Stride row = e.heads;
    const int slices = (e.heads + 15) / 16;
    share_out(e.batch * slices, threads, [&](int, int unit) {
        const int sequence = unit / slices, first = unit % slices * 16, columns = std::min(16, e.heads - first);
        const Stride start = start_of(e, sequence, row) + first, from = sequence * 3 * row + first;
        float *top = job.state_out + from, *below = top + row, *most = below + row;
        for (int c = 0; c < columns; ++c)
            for (int piece = 0; piece < 3; ++piece) top[piece * row + c] = job.state[from + piece * row + c];
        stretches(e, sequence, [&] {
            std::fill_n(top, columns, 0.0f);
            std::fill_n(below, columns, 0.0f);
            std::fill_n(most, columns, -1e30f);
        }, [&](int t, int rows) {
            const Stride at = start + t * row;
            table.wkv4(job.y + at, row, job.k + at, row, job.v + at, row, job.decay + first, job.bonus + first, top,
                       below, most, rows, columns);
        });
    });
}

void run(const Backward4& job, int threads, const Kernels& table) {
    const auto& e = job.extent;
    const int slices = (e.heads + 15) / 16;
    const std::size_t size = count(e.heads);
    const Scratch scratch(table.scratch4(e.time), threads), each(2 * size * count(e.batch), 1);
    Backward4 part = job;
    part.ddecay = each.of(0);
    part.dbonus = part.ddecay + size * count(e.batch);
    share_out(e.batch * slices, threads,
              [&](int thread, int unit) { table.wkv4_backward(part, unit, scratch.of(thread)); });
    add_up(job.ddecay, part.ddecay, e.batch, size);
    add_up(job.dbonus, part.dbonus, e.batch, size);
}

void run(const Forward6& job, int threads, const Kernels& table) {
    const auto& e = job.extent;
    const Stride row = static_cast<Stride>(e.heads) * e.n, square = static_cast<Stride>(e.n) * e.n;
    share_out(e.batch * e.heads, threads, [&](int, int unit) {
        const Stride head = static_cast<Stride>(unit % e.heads) * e.n, start = start_of(e, unit / e.heads, row) + head;
        float* state = job.state_out + unit * square;
        std::copy_n(job.state + unit * square, square, state);
        stretches(e, unit / e.heads, [&] { std::fill_n(state, square, 0.0f); }, [&](int from, int rows) {
            const Stride at = start + from * row;
            table.wkv6(job.y + at, row, job.r + at, row, job.k + at, row, job.v + at, row,
                       job.decay + (job.fixed ? head : at), job.fixed ? 0 : row, job.bonus + head, state, rows, e.n);
        });
    });
}

void run(const Backward6& job, int threads, const Kernels& table) {
    const auto& e = job.extent;
    const std::size_t size = count(e.heads) * count(e.n);
    const Scratch scratch(table.scratch6(e.time, e.n), threads), each(2 * size * count(e.batch), 1);
    Backward6 part = job;
    part.dbonus = each.of(0);
    if (job.fixed) part.ddecay = part.dbonus + size * count(e.batch);
    share_out(e.batch * e.heads, threads,
              [&](int thread, int unit) { table.wkv6_backward(part, unit, scratch.of(thread)); });
    add_up(job.dbonus, part.dbonus, e.batch, size);
    if (job.fixed) add_up(job.ddecay, part.ddecay, e.batch, size);
}

void run(const Forward7& job, int threads, const Kernels& table) {
    const auto& e = job.extent;
    const Stride row = static_cast<Stride>(e.heads) * e.n, square = static_cast<Stride>(e.n) * e.n;
    share_out(e.batch * e.heads, threads, [&](int, int unit) {
        const Stride start = start_of(e, unit / e.heads, row) + static_cast<Stride>(unit % e.heads) * e.n;
        float* state = job.state_out + unit * square;
        std::copy_n(job.state + unit * square, square, state);
        stretches(e, unit / e.heads, [&] { std::fill_n(state, square, 0.0f); }, [&](int from, int rows) {
            const Stride at = start + from * row;
            table.wkv7(job.y + at, row, job.r + at, row, job.decay + at, row, job.k + at, row, job.v + at, row,
                       job.a + at, row, job.b + at, row, state, rows, e.n);
        });
    });
}

void run(const Backward7& job, int threads, const Kernels& table) {
    const auto& e = job.extent;
    const Scratch scratch(table.scratch7(e.time, e.n), threads);
    share_out(e.batch * e.heads, threads,
              [&](int thread, int unit) { table.wkv7_backward(job, unit, scratch.of(thread)); });
}

}  // namespace rookery
