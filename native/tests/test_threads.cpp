// The team: every unit once, phases in order, whatever the threads do; interrupts; fork. The team is compiled in here,
// so that its threads can be made to lose time between any two steps that another thread may come between.
void stall();
#define ROOKERY_STALL() stall()
#include "../threads.cpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace rookery;

std::atomic<bool> stalling{false};

void stall() {
    thread_local unsigned random = 1 + static_cast<unsigned>(std::hash<std::thread::id>()(std::this_thread::get_id()));
    if (!stalling.load(std::memory_order_relaxed)) return;
    random = random * 1664525 + 1013904223;
    if (random >> 28 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    else if (random >> 28 < 4)
        std::this_thread::yield();
}

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("FAILED: %s\n", what);
    ++failures;
}

// Phases of several sizes, some of them by the run's rows. A unit checks that all of the phase before it are done;
// the counts are plain numbers, so that the thread sanitizer sees a missing synchronisation.
struct Counted final : Work {
    explicit Counted(int n) : threads(n), counts(kPhases, std::vector<int>(400, 0)) {}
    static constexpr int kPhases = 40;

    int units(int phase, const Sizes& sizes) const { return phase % 5 == 0 ? sizes.rows : phase % 7 == 0 ? 1 : 3 * phase; }
    int phases() const override { return kPhases; }
    int boundary(int phase, int thread, const Sizes& sizes) const override {
        return units(phase, sizes) * thread / threads;
    }
    void execute(int, int phase, int begin, int end) override {
        if (phase > 0)
            for (int i = 0; i < units(phase - 1, now); ++i)
                if (counts[static_cast<std::size_t>(phase - 1)][static_cast<std::size_t>(i)] != round) early = true;
        if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        for (int i = begin; i < end; ++i) ++counts[static_cast<std::size_t>(phase)][static_cast<std::size_t>(i)];
        executed += end - begin;
    }

    const int threads;
    Sizes now;
    int round = 0;
    bool slow = false;
    std::vector<std::vector<int>> counts;
    std::atomic<bool> early{false};
    std::atomic<int> executed{0};
};

void all_units_once(int threads) {
    Counted work(threads);
    Team team(threads, Counted::kPhases);
    for (int i = 0; i < 300; ++i) {
        const Sizes sizes{1 + i * 7 % 256, 1};
        work.now = sizes;
        for (auto& c : work.counts) c.assign(400, work.round);
        ++work.round;
        expect(team.run(work, sizes, nullptr), "a run without a poll ends whole");
        for (int p = 0; p < Counted::kPhases; ++p)
            for (int u = 0; u < 400; ++u)
                if (work.counts[static_cast<std::size_t>(p)][static_cast<std::size_t>(u)] != work.round - (u >= work.units(p, sizes)))
                    expect(false, "every unit runs once");
        if (i % 100 == 99) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the threads fall asleep
    }
    expect(!work.early, "a phase waits for all units of the one before");
}

// Phases and runs of little work: who has lost time comes back in another one.
struct Short final : Work {
    explicit Short(int n) : threads(n) {}
    static constexpr int kPhases = 6;
    int phases() const override { return kPhases; }
    int boundary(int phase, int thread, const Sizes& sizes) const override {
        return (phase % 2 ? 1 : sizes.rows) * thread / threads;
    }
    void execute(int, int phase, int begin, int end) override {
        for (int p = 0; p < kPhases; ++p) {
            const int wanted = p < phase ? boundary(p, threads, now) : 0;
            if (p != phase && counts[p] != wanted) wrong = true;
        }
        counts[phase] += end - begin;
    }

    const int threads;
    Sizes now;
    std::atomic<int> counts[kPhases] = {};
    std::atomic<bool> wrong{false};
};

void stalled(int threads) {
    Short work(threads);
    Team team(threads, Short::kPhases);
    stalling = true;
    for (int i = 0; i < 1000; ++i) {
        for (auto& c : work.counts) c = 0;
        work.now = {1 + i % 5, 1};
        team.run(work, work.now, nullptr);
        for (int p = 0; p < Short::kPhases; ++p)
            if (work.counts[p] != work.boundary(p, threads, work.now)) work.wrong = true;
    }
    stalling = false;
    expect(!work.wrong, "threads that lose time neither repeat, skip nor hurry a unit");
}

void interrupt(int threads) {
    Counted work(threads);
    work.slow = true;
    Team team(threads, Counted::kPhases);
    const Sizes sizes{256, 1};
    work.now = sizes;
    work.round = 1;
    expect(!team.run(work, sizes, [] { return true; }), "an interrupted run says so");
    int all = 0;
    for (int p = 0; p < Counted::kPhases; ++p) all += work.units(p, sizes);
    expect(work.executed < all, "an interrupted run passes over the rest");
    work.slow = false;
    for (auto& c : work.counts) c.assign(400, 0);
    work.early = false;
    expect(team.run(work, sizes, [] { return false; }) && !work.early, "the next run is whole again");
}

#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)  // which does not follow a child's new threads
void forked(int threads) {
    Counted work(threads);
    Team team(threads, Counted::kPhases);
    const auto once = [&] {
        work.now = {5, 1};
        ++work.round;
        for (auto& c : work.counts) c.assign(400, work.round - 1);
        return team.run(work, work.now, nullptr) && !work.early;
    };
    expect(once(), "before the fork");
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) _exit(once() && once() ? 0 : 1);
    expect(once(), "in the parent");
    int status = -1;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "in the child");
}
#else
void forked(int) {}
#endif

}  // namespace

int main() {
    for (int threads = 1; threads <= 8; ++threads) {
        all_units_once(threads);
        stalled(threads);
        interrupt(threads);
        forked(threads);
    }
    for (int i = 0; i < 50; ++i) Team unused(4, 1);
    if (!failures) std::printf("test_threads: all is well\n");
    return failures ? 1 : 0;
}
