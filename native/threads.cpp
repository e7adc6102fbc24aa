#include "threads.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#ifndef ROOKERY_STALL  // test_threads has threads lose time where an interleaving could matter
#define ROOKERY_STALL()
#endif

namespace rookery {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr auto POLL = milliseconds(20);
constexpr auto PATIENCE = microseconds(200);     // spinning for the other units of a phase
constexpr auto IDLE_PATIENCE = milliseconds(1);  // spinning for the next run: a decoder comes back within that

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// A share of units that is still to be taken, and the run it belongs to: one word, changed by compare-and-swap. A word
// of an earlier run stands for the untouched share, so that no run has to write words before it starts.
struct Range {
    std::uint32_t run;
    std::uint16_t begin, end;

    std::uint64_t word() const { return std::uint64_t{run} << 32 | std::uint64_t{begin} << 16 | end; }
    static Range of(std::uint64_t w) {
        return {static_cast<std::uint32_t>(w >> 32), static_cast<std::uint16_t>(w >> 16),
                static_cast<std::uint16_t>(w)};
    }
};

}  // namespace

std::int64_t this_process() {
#if defined(_WIN32)
    return _getpid();
#else
    return getpid();
#endif
}

struct Team::Shared {
    Shared(int n, int phases)
        : threads(n), ranges(static_cast<std::size_t>(phases * n)), done(static_cast<std::size_t>(phases)) {
        const auto cores = static_cast<int>(std::thread::hardware_concurrency());
        if (cores && n > cores) patience = idle_patience = microseconds(5);  // spinning would keep others from working
    }

    const int threads;
    Clock::duration patience = PATIENCE, idle_patience = IDLE_PATIENCE;

    // The present run, a sequence lock: `run` is odd while the fields change.
    std::atomic<std::uint32_t> run{0};
    std::atomic<Work*> work{nullptr};
    std::atomic<int> rows{0}, outputs{0};
    std::atomic<bool> cancelled{false}, closing{false};
    std::atomic<std::uint64_t> reached{0};  // run and phase under way: a hint for those who come late, late itself

    struct alignas(64) Line {  // a cache line of its own
        std::atomic<std::uint64_t> word{0};
    };
    std::vector<Line> ranges, done;  // [phase][thread] and [phase]
    std::vector<std::thread> workers;

    std::atomic<int> sleepers{0};
    std::mutex mutex;
    std::condition_variable bell;

    void ring() {
        // Read by writing: either this sees who has lain down, or they, counting themselves after it, see what is new.
        if (sleepers.fetch_add(0) == 0) return;
        { const std::lock_guard lock(mutex); }
        bell.notify_all();
    }

    // Wait until `ready()`: spinning for `patience`, then asleep, at most POLL at a time if `each` has to be called.
    template <class Ready, class Each>
    void wait(Ready ready, Clock::duration patience, bool alarm, Each each) {
        const auto begin = Clock::now();
        for (int i = 1; !ready(); ++i) {
            pause();
            if (i % 64) continue;
            each();
            if (Clock::now() - begin < patience) continue;
            std::unique_lock lock(mutex);
            ++sleepers;
            if (!ready()) {
                ROOKERY_STALL();
                if (alarm)
                    bell.wait_for(lock, POLL);
                else
                    bell.wait(lock);
            }
            --sleepers;
        }
    }

    // Take units from thread `from`'s share: from its front by the owner, from its back by a helper.
    bool take(int phase, int from, bool owner, std::uint32_t now, const Work& job, const Sizes& sizes, int& begin,
              int& end) {
        auto& word = ranges[static_cast<std::size_t>(phase * threads + from)].word;
        auto old = word.load(std::memory_order_acquire);
        for (;;) {
            auto range = Range::of(old);
            if (range.run != now && run.load(std::memory_order_acquire) != now) return false;  // a later run's
            if (range.run != now)
                range = {now, static_cast<std::uint16_t>(job.boundary(phase, from, sizes)),
                         static_cast<std::uint16_t>(job.boundary(phase, from + 1, sizes))};
            const int left = range.end - range.begin;
            if (left <= 0) return false;
            ROOKERY_STALL();
            const int some = owner ? (3 * left + 3) / 4 : (left + 1) / 2;  // few pieces, and the last ones small
            begin = owner ? range.begin : range.end - some;
            end = begin + some;
            if (owner)
                range.begin = static_cast<std::uint16_t>(end);
            else
                range.end = static_cast<std::uint16_t>(begin);
            if (word.compare_exchange_weak(old, range.word(), std::memory_order_acq_rel)) return true;
        }
    }

    std::uint64_t finished(int phase, std::uint32_t now) const {
        const auto word = done[static_cast<std::size_t>(phase)].word.load(std::memory_order_acquire);
        if (static_cast<std::uint32_t>(word >> 32) == now) return word & 0xffffffffu;
        return run.load(std::memory_order_acquire) == now ? 0 : ~std::uint64_t{0};  // the run is over
    }

    void finish(int phase, std::uint32_t now, int count, int all) {
        auto& word = done[static_cast<std::size_t>(phase)].word;
        auto old = word.load(std::memory_order_relaxed);
        std::uint64_t sum;
        do {
            sum = (static_cast<std::uint32_t>(old >> 32) == now ? old & 0xffffffffu : 0) + static_cast<unsigned>(count);
        } while (!word.compare_exchange_weak(old, std::uint64_t{now} << 32 | sum, std::memory_order_acq_rel));
        if (sum == static_cast<std::uint64_t>(all)) {
            ROOKERY_STALL();
            reached.store(std::uint64_t{now} << 32 | static_cast<unsigned>(phase + 1), std::memory_order_release);
            ring();
        }
    }

    // Go through the phases of run `now`. `each` is called between pieces of work.
    template <class Each>
    void go(int thread, std::uint32_t now, Work& job, const Sizes& sizes, int from, Each each, double* times = nullptr) {
        const int phases = job.phases();
        auto before = times ? Clock::now() : Clock::time_point{};
        for (int phase = from; phase < phases; ++phase) {
            const int all = job.boundary(phase, threads, sizes);
            for (int i = 0; i < threads; ++i) {
                const int share = (thread + i) % threads;
                for (int begin, end; take(phase, share, i == 0, now, job, sizes, begin, end);) {
                    if (!cancelled.load(std::memory_order_relaxed)) job.execute(thread, phase, begin, end);
                    finish(phase, now, end - begin, all);
                    each();
                }
            }
            job.ahead(thread, phase);
            wait([&] { return finished(phase, now) >= static_cast<std::uint64_t>(all); }, patience, thread == 0, each);
            if (times) {
                const auto after = Clock::now();
                times[phase] = std::chrono::duration<double>(after - before).count();
                before = after;
            }
            if (run.load(std::memory_order_relaxed) != now) return;
        }
    }

    void serve(int thread) {
        std::uint32_t seen = 0;
        for (;;) {
            wait([&] {
                const auto now = run.load(std::memory_order_acquire);
                return closing.load() || (now != seen && now % 2 == 0);
            }, idle_patience, false, [] {});
            if (closing.load()) return;
            const auto now = run.load(std::memory_order_acquire);
            ROOKERY_STALL();
            auto* job = work.load(std::memory_order_acquire);
            const Sizes sizes{rows.load(std::memory_order_acquire), outputs.load(std::memory_order_acquire)};
            const auto hint = reached.load(std::memory_order_acquire);
            ROOKERY_STALL();
            const int from = static_cast<std::uint32_t>(hint >> 32) == now ? static_cast<int>(hint & 0xffffffffu) : 0;
            if (now % 2 || run.load(std::memory_order_acquire) != now) continue;  // the next run is being set up
            seen = now;
            go(thread, now, *job, sizes, from, [] {});
        }
    }
};

Team::Team(int threads, int most_phases) : threads_(threads), most_phases_(most_phases) {}

Team::~Team() {
    if (!shared_) return;
    if (this_process() != process_) {  // a child of fork: the threads are its parent's
        (void)shared_.release();
        return;
    }
    shared_->closing.store(true);
    { const std::lock_guard lock(shared_->mutex); }
    shared_->bell.notify_all();
    for (auto& worker : shared_->workers) worker.join();
}

bool Team::run(Work& work, const Sizes& sizes, bool (*poll)(), double* times) {
    if (shared_ && this_process() != process_) (void)shared_.release();  // its locks may be held by threads not here
    if (!shared_) {
        process_ = this_process();
        shared_ = std::make_unique<Shared>(threads_, most_phases_);
        try {
            for (int i = 1; i < threads_; ++i) shared_->workers.emplace_back([s = shared_.get(), i] { s->serve(i); });
        } catch (const std::system_error&) {  // no room for more threads: those there are take the others' shares
        }
    }
    auto& s = *shared_;
    const auto last = s.run.load(std::memory_order_relaxed);
    s.run.store(last + 1, std::memory_order_relaxed);
    s.work.store(&work, std::memory_order_release);
    s.rows.store(sizes.rows, std::memory_order_release);
    s.outputs.store(sizes.outputs, std::memory_order_release);
    s.cancelled.store(false, std::memory_order_release);
    s.run.store(last + 2, std::memory_order_release);
    s.ring();
    auto asked = Clock::now();
    s.go(0, last + 2, work, sizes, 0, [&] {
        if (!poll || s.cancelled.load(std::memory_order_relaxed) || Clock::now() - asked < POLL) return;
        if (poll()) s.cancelled.store(true);
        asked = Clock::now();
    }, times);
    return !s.cancelled.load();
}

}  // namespace rookery
