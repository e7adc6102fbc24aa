#include "training.h"

#include <atomic>
#include <cstring>
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

}  // namespace

void run(const Forward7& job, int threads) {
    const auto& e = job.extent;
    const auto& table = kernels();
    const Stride row = static_cast<Stride>(e.heads) * e.n, square = static_cast<Stride>(e.n) * e.n;
    share_out(e.batch * e.heads, threads, [&](int, int unit) {
        const Stride start = unit / e.heads * e.time * row + unit % e.heads * e.n;
        float* state = job.state_out + unit * square;
        std::memcpy(state, job.state + unit * square, static_cast<std::size_t>(square) * sizeof(float));
        stretches(e, unit / e.heads, [&] { std::memset(state, 0, static_cast<std::size_t>(square) * sizeof(float)); },
                  [&](int from, int rows) {
            const Stride at = start + from * row;
            table.wkv7(job.y + at, row, job.r + at, row, job.decay + at, row, job.k + at, row, job.v + at, row,
                       job.a + at, row, job.b + at, row, state, rows, e.n);
        });
    });
}

void run(const Backward7& job, int threads) {
    const auto& e = job.extent;
    const auto& table = kernels();
    const Scratch scratch(table.scratch7(e.time, e.n), threads);
    share_out(e.batch * e.heads, threads,
              [&](int thread, int unit) { table.wkv7_backward(job, unit, scratch.of(thread)); });
}

}  // namespace rookery
