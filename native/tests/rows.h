// For the tests of kernels: the set under test, checks, and rows in memory that must not be left.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#ifndef _WIN32
#include <sys/mman.h>
#endif

#include "../kernels.h"

namespace {

const rookery::Kernels* K;  // the set under test
constexpr float GUARD = -12345.678f;

void check(bool good, const char* what, int line) {
    if (good) return;
    std::fprintf(stderr, "%s, line %d: %s\n", K != nullptr ? K->name : "", line, what);
    std::exit(1);
}
#define CHECK(what) check((what), #what, __LINE__)

void near(double got, double wanted, double tolerance, const char* what, int at, int line) {
    if (got == wanted || std::fabs(got - wanted) <= tolerance) return;
    std::fprintf(stderr, "%s, line %d: %s at %d: %.9g instead of %.9g\n", K->name, line, what, at, got, wanted);
    std::exit(1);
}
#define NEAR(got, wanted, tolerance, what, at) near((got), (wanted), (tolerance), (what), (at), __LINE__)

// Memory whose end is the end of what may be touched.
class Memory {
public:
#ifdef _WIN32
    explicit Memory(std::size_t bytes) : start_(std::malloc(bytes + 1)) {}
    ~Memory() { std::free(start_); }
    unsigned char* data() const { return static_cast<unsigned char*>(start_); }
#else
    explicit Memory(std::size_t bytes) : bytes_(bytes) {
        CHECK(bytes <= ROOM);
        if (!spare.empty()) {
            start_ = spare.back();
            spare.pop_back();
            return;
        }
        start_ = mmap(nullptr, 2 * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(start_ != MAP_FAILED);
        CHECK(mprotect(static_cast<unsigned char*>(start_) + ROOM, ROOM, PROT_NONE) == 0);
    }
    ~Memory() { spare.push_back(start_); }
    unsigned char* data() const { return static_cast<unsigned char*>(start_) + ROOM - bytes_; }
#endif
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

private:
    void* start_;
#ifndef _WIN32
    static constexpr std::size_t ROOM = 1 << 17;  // a multiple of any system's page
    static inline std::vector<void*> spare;       // to be used again: a system call each would take most of the time
    std::size_t bytes_;
#endif
};

std::mt19937 generator(1);
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

// Rows of `columns` floats `stride` apart (0: one row for all), guards before, between and nothing behind.
class Rows {
public:
    static constexpr int BEFORE = 16;
    Rows(int rows, int columns, rookery::Stride stride, float low = -2, float high = 2)
        : columns_(columns), stride_(stride), real_(stride == 0 && rows > 0 ? 1 : rows),
          size_(BEFORE + (real_ > 0 ? (real_ - 1) * stride + columns : 0)), memory_(4 * size_) {
        float* all = reinterpret_cast<float*>(memory_.data());
        for (std::size_t i = 0; i < size_; ++i) all[i] = GUARD;
        for (int r = 0; r < real_; ++r)
            for (int c = 0; c < columns; ++c) row(r)[c] = low == high ? GUARD : uniform(low, high);
    }
    static Rows out(int rows, int columns, rookery::Stride stride) { return Rows(rows, columns, stride, 0, 0); }
    Rows(const Rows& other) : Rows(other.real_, other.columns_, other.stride_, 0, 0) {
        std::memcpy(memory_.data(), other.memory_.data(), 4 * size_);
    }

    float* data() const { return reinterpret_cast<float*>(memory_.data()) + BEFORE; }
    float* row(int r) const { return data() + r * stride_; }
    float at(int r, int c) const { return row(stride_ == 0 ? 0 : r)[c]; }
    rookery::Stride stride() const { return stride_; }

    void untouched_outside() const {
        for (int i = -BEFORE; i < static_cast<int>(size_) - BEFORE; ++i) {
            const bool inside = i >= 0 && (stride_ == 0 ? i < columns_ : i % stride_ < columns_);
            CHECK(inside || data()[i] == GUARD);
        }
    }
    bool same(const Rows& other) const {
        for (int r = 0; r < real_; ++r)
            if (columns_ > 0 && std::memcmp(row(r), other.row(r), 4 * columns_) != 0) return false;
        return true;
    }

private:
    int columns_;
    rookery::Stride stride_;
    int real_;
    std::size_t size_;
    Memory memory_;
};

}  // namespace
