// A team of threads that goes through the phases of a job together.
//
// A phase is a number of units that may run in any order; the next begins when all are done. Each thread starts on its
// own share of the units, so that it reads its part of the weights as one stream, and helps others when it is through.
// Nobody waits for a thread, only for units: one that the system has put to sleep holds up at most the units in its
// hands. Who has to wait spins for a moment and then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace rookery {

// How large the present run is; what a thread needs to know which units there are.
struct Sizes {
    int rows = 0, outputs = 0;
};

class Work {
public:
    virtual ~Work() = default;
    virtual int phases() const = 0;
    // Where thread t's share of a phase's units begins; boundary(phase, threads) is their number, below 65,536.
    virtual int boundary(int phase, int thread, const Sizes& sizes) const = 0;
    virtual void execute(int thread, int phase, int begin, int end) = 0;
    // Called by a thread that has nothing left to do in a phase and is about to wait for the others; it may come late,
    // during another run, so it must look at nothing that a run changes.
    virtual void ahead(int /*thread*/, int /*phase*/) {}
};

std::int64_t this_process();

class Team {
public:
    Team(int threads, int most_phases);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return threads_; }

    // All units of all phases, the caller working too. `poll` is asked every 20 ms on the caller's thread; once it says
    // true the remaining units are passed over and the answer is false. One caller at a time; `work` must live as long
    // as the team. `times`, where given, gets the seconds of each phase. Threads start with the first run, in a child of
    // fork with its own first.
    bool run(Work& work, const Sizes& sizes, bool (*poll)(), double* times = nullptr);

private:
    struct Shared;

    int threads_, most_phases_;
    std::int64_t process_ = 0;
    std::unique_ptr<Shared> shared_;
};

}  // namespace rookery
