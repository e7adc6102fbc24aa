// The engine on a small plan of its own: the same bits for any threads, batches and cuts; wrong plans are refused.
#include "engine.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

#include "panels.h"

using namespace rookery;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("FAILED: %s\n", what);
    ++failures;
}

constexpr int C = 192, N = 64, V = 100, F = 224, ROWS = 40;
constexpr int STATE = C + C * N;

struct Panels {
    std::vector<std::uint8_t> bytes;
    Weight weight;
};

// Random weights of any kind, made from float32 or Q8_0.
Panels random_panels(Kind kind, int rows, int columns, std::mt19937& random) {
    std::vector<float> values(static_cast<std::size_t>(rows * columns));
    for (auto& v : values) v = std::normal_distribution<float>(0, 0.1f)(random);
    std::vector<std::uint8_t> data(values.size() * 4);
    std::memcpy(data.data(), values.data(), data.size());
    std::string dtype = "f32";
    if (kind == Kind::q8) {
        dtype = "q8_0";
        const auto* type = block_type(dtype);
        data.resize(values.size() / 32 * type->bytes);
        for (std::size_t i = 0; i < values.size() / 32; ++i) type->encode(values.data() + 32 * i, data.data() + i * type->bytes);
    }
    Panels made;
    made.bytes.resize(panel_bytes(kind, columns) * static_cast<std::size_t>(panels(rows)) + 64);
    auto* at = made.bytes.data() + (64 - reinterpret_cast<std::uintptr_t>(made.bytes.data()) % 64) % 64;
    pack(dtype, data.data(), rows, columns, false, kind, 0, panels(rows), at);
    made.weight = {kind, rows, columns, at};
    return made;
}

// embed, norm | shift, mix, encode | three linears, one of codes | wkv7 by heads | linear | pick, norm | head
struct Model {
    std::vector<Panels> panels;
    std::vector<float> table;
    std::unique_ptr<Engine> engine;

    explicit Model(int threads) {
        std::mt19937 random(7);
        engine = std::make_unique<Engine>(threads, STATE, V, ROWS);
        auto& e = *engine;
        table.resize(V * C);
        for (auto& v : table) v = std::normal_distribution<float>(0, 1)(random);
        const int embedding = e.table({"f32", V, C, reinterpret_cast<const std::uint8_t*>(table.data()), nullptr, 0});
        const Kind kinds[] = {Kind::q8, Kind::f32, Kind::f32, Kind::f32, Kind::f32};
        const int outputs[] = {C, F, C, C, V}, columns[] = {C, C, C, C, C};
        for (int i = 0; i < 5; ++i) panels.push_back(random_panels(kinds[i], outputs[i], columns[i], random));
        for (const auto& p : panels) e.weight(p.weight);
        std::size_t at = 0;
        const auto shared = [&](Input kind, int width) {
            const int id = e.shared(kind, width, at, ROWS);
            at += input_bytes(kind, width) * ROWS;
            return id;
        };
        const auto b = [](int id) { return Operand{Space::buffer, id, 0}; };
        const auto c = [](int id) { return Operand{Space::constant, id, 0}; };
        const auto add = [&](Op op, Operand out, std::initializer_list<Operand> in, int number = -1, int state = -1, int n = 0) {
            Step s{op, out, {}, number, state, n, 1e-5f};
            std::copy(in.begin(), in.end(), s.in);
            e.step(s);
        };
        const int ones = e.constant(std::vector<float>(C, 1.f)), half = e.constant(std::vector<float>(C, 0.5f)),
                  decay = e.constant(std::vector<float>(C, -0.3f));
        const int x = shared(Input::f32, C), n = shared(Input::f32, C), mixed = shared(Input::f32, C),
                  codes = shared(Input::codes, C), r = shared(Input::f32, C), wide = shared(Input::f32, F),
                  v = shared(Input::f32, C), y = shared(Input::f32, C), o = shared(Input::f32, C),
                  last = shared(Input::f32, C), normed = shared(Input::f32, C), logits = e.logits();
        e.phase(true, false), e.lane(C, 64, 0);
        add(Op::embed, b(x), {}, embedding);
        add(Op::layer_norm, b(n), {b(x), c(ones), c(half)});
        e.phase(false, false), e.lane(C, 64, 2);
        const int previous = e.local(C, 0), d = e.local(C, 1);
        add(Op::shift, b(previous), {b(n)}, -1, 0);
        add(Op::subtract, b(d), {b(previous), b(n)});
        add(Op::fma, b(mixed), {b(n), b(d), c(half)});
        add(Op::encode, b(codes), {b(mixed)});
        e.phase(false, false);
        e.lane(C, 64, 0), add(Op::linear, b(r), {b(codes)}, 0);
        e.lane(F, 64, 0), add(Op::linear, b(wide), {b(mixed)}, 1), add(Op::tanh, b(wide), {b(wide)});
        e.lane(C, 64, 0), add(Op::linear, b(v), {b(mixed)}, 2);
        e.phase(false, false), e.lane(C, 64, 4);
        const int k = e.local(C, 0), a = e.local(C, 1), kk = e.local(C, 2), z = e.local(C, 3);
        add(Op::sigmoid, b(k), {b(v)});
        add(Op::normalize, b(kk), {b(k)}, -1, -1, N);
        add(Op::negative, b(a), {b(kk)});
        add(Op::wkv7, b(z), {b(r), c(decay), b(k), b(v), b(a), b(kk)}, -1, C, N);
        add(Op::group_norm, b(y), {b(z), c(ones), c(half)}, -1, -1, N);
        e.phase(false, false), e.lane(C, 64, 1);
        const int t = e.local(C, 0);
        add(Op::linear, b(t), {b(y)}, 3);
        add(Op::add, b(o), {b(x), b(t)});
        e.phase(true, true), e.lane(C, 64, 0);
        add(Op::pick, b(last), {b(o)});
        add(Op::layer_norm, b(normed), {b(last), c(ones), c(half)});
        e.phase(false, true), e.lane(V, 64, 0), add(Op::linear, b(logits), {b(normed)}, 4);
        e.finish();
    }
};

using Floats = std::vector<float>;

Floats run(Engine& e, const std::vector<std::vector<std::int64_t>>& rows, std::vector<Floats>& states, bool every) {
    std::vector<std::int64_t> ids;
    std::vector<int> lengths;
    std::vector<float*> pointers;
    for (std::size_t b = 0; b < rows.size(); ++b) {
        ids.insert(ids.end(), rows[b].begin(), rows[b].end());
        lengths.push_back(static_cast<int>(rows[b].size()));
        pointers.push_back(states[b].data());
    }
    Floats logits((every ? ids.size() : rows.size()) * V);
    expect(e.run(ids.data(), lengths, pointers, logits.data(), every, nullptr), "a run ends whole");
    return logits;
}

bool same(const Floats& a, const Floats& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void law_of_rows() {
    Model one(1);
    std::vector<std::vector<std::int64_t>> rows(3);
    for (int i = 0; i < 13; ++i) rows[0].push_back(i * 7 % V);
    for (int i = 0; i < 1; ++i) rows[1].push_back(5);
    for (int i = 0; i < 25; ++i) rows[2].push_back(i * i % V);
    std::vector<Floats> truth;  // every token alone
    std::vector<Floats> ends;
    for (const auto& sequence : rows) {
        std::vector<Floats> state{Floats(STATE, 0.f)};
        Floats logits;
        for (const auto id : sequence) {
            const auto some = run(*one.engine, {{id}}, state, true);
            logits.insert(logits.end(), some.begin(), some.end());
        }
        truth.push_back(logits), ends.push_back(state[0]);
        expect(logits.front() == logits.front() && logits.back() != 0, "logits are numbers");
    }
    for (int threads = 1; threads <= 8; ++threads) {
        Model model(threads);
        for (int repeat = 0; repeat < 5; ++repeat) {
            std::vector<Floats> states(3, Floats(STATE, 0.f));
            const auto logits = run(*model.engine, rows, states, true);
            Floats whole;
            for (const auto& t : truth) whole.insert(whole.end(), t.begin(), t.end());
            expect(same(logits, whole), "a batch gives the bits of single rows");
            for (int b = 0; b < 3; ++b) expect(same(states[static_cast<std::size_t>(b)], ends[static_cast<std::size_t>(b)]), "and the states");
            std::vector<Floats> again(3, Floats(STATE, 0.f));
            const auto last = run(*model.engine, rows, again, false);
            for (std::size_t b = 0; b < 3; ++b)
                expect(std::memcmp(last.data() + b * V, truth[b].data() + truth[b].size() - V, V * sizeof(float)) == 0,
                       "the last rows' logits alone");
        }
    }
}

// Two callers at once take turns.
void two_callers() {
    Model model(2);
    const std::vector<std::vector<std::int64_t>> rows{{1, 2, 3}};
    std::vector<Floats> state(1, Floats(STATE, 0.f));
    const auto truth = run(*model.engine, rows, state, true);
    const auto work = [&] {
        for (int i = 0; i < 50; ++i) {
            std::vector<Floats> mine(1, Floats(STATE, 0.f));
            expect(same(run(*model.engine, rows, mine, true), truth), "two callers do not disturb each other");
        }
    };
    std::thread other(work);
    work();
    other.join();
}

// embed | pick | A by group, of ranks 24 and 7 | W beside it and B by group | logits
struct Chooser {
    static constexpr int RANK = 24;
    std::vector<Panels> panels;
    std::vector<float> table;
    Engine engine;

    Chooser(int threads, bool beside) : table(V * C), engine(threads, 1, V, ROWS) {
        std::mt19937 random(11);
        for (auto& v : table) v = std::normal_distribution<float>(0, 1)(random);
        const int embedding = engine.table({"f32", V, C, reinterpret_cast<const std::uint8_t*>(table.data()), nullptr, 0});
        const int shapes[][2] = {{V, C}, {RANK, C}, {V, RANK}, {7, C}, {V, 7}};
        for (const auto& [rows, columns] : shapes) panels.push_back(random_panels(Kind::f32, rows, columns, random));
        for (const auto& p : panels) engine.weight(p.weight);
        const auto b = [](int id) { return Operand{Space::buffer, id, 0}; };
        const std::size_t row = input_bytes(Input::f32, C) * ROWS;
        const int x = engine.shared(Input::f32, C, 0, ROWS), last = engine.shared(Input::f32, C, row, ROWS),
                  h = engine.shared(Input::f32, RANK, 2 * row, ROWS), logits = engine.logits();
        engine.phase(true, false), engine.lane(C, 64, 0), engine.step({Op::embed, b(x), {}, embedding});
        engine.phase(true, true), engine.lane(C, 64, 0), engine.step({Op::pick, b(last), {b(x)}});
        if (beside) {
            const int a = engine.weights({1, 3, -1});
            engine.phase(false, true), engine.lane(RANK, 32, 0), engine.step({Op::choose, b(h), {b(last)}, a});
        }
        engine.phase(false, true), engine.lane(V, 32, 2);
        const int y = engine.local(V, 0), z = engine.local(V, 1);
        engine.step({Op::linear, b(beside ? y : logits), {b(last)}, 0});
        if (beside) {
            engine.step({Op::choose, b(z), {b(h)}, engine.weights({2, 4, -1})});
            engine.step({Op::add, b(logits), {b(y), b(z)}});
        }
        engine.finish();
    }

    Floats run(const std::vector<int>& lengths, const std::vector<int>& groups, bool every, int from = 0) {
        std::vector<std::int64_t> ids;
        Floats state(lengths.size());
        std::vector<float*> states;
        for (std::size_t s = 0; s < lengths.size(); ++s) {
            states.push_back(&state[s]);
            for (int t = 0; t < lengths[s]; ++t) ids.push_back((from + 31 * static_cast<int>(s) + 7 * t) % V);
        }
        Floats logits((every ? ids.size() : lengths.size()) * V);
        expect(engine.run(ids.data(), lengths, states, logits.data(), every, nullptr, nullptr, groups), "a run ends whole");
        return logits;
    }
};

void groups_choose_weights() {
    const std::vector<int> lengths{3, 1, 5, 2, 9, 1, 4}, groups{0, 1, 1, -1, 2, 0, 1};
    Chooser one(1, true), plain(1, false);
    for (const bool every : {false, true}) {
        Floats truth, without;
        for (int s = 0; s < static_cast<int>(lengths.size()); ++s) {
            const auto at = static_cast<std::size_t>(s);
            const auto mine = one.run({lengths[at]}, {groups[at]}, every, 31 * s), bare = plain.run({lengths[at]}, {}, every, 31 * s);
            expect(same(mine, bare) == (groups[at] == -1 || groups[at] == 2), "a group without a weight adds nothing");
            truth.insert(truth.end(), mine.begin(), mine.end()), without.insert(without.end(), bare.begin(), bare.end());
        }
        for (int threads = 1; threads <= 4; ++threads) {
            Chooser many(threads, true);
            expect(same(many.run(lengths, groups, every), truth), "each sequence has its group's weights");
            expect(same(many.run(lengths, {}, every), without), "and none where no groups are given");
        }
    }
}

template <class Do>
void refused(Do wrong, const char* what) {
    try {
        wrong();
    } catch (const std::invalid_argument&) {
        return;
    }
    expect(false, what);
}

void wrong_plans() {
    std::mt19937 random(1);
    const auto p = random_panels(Kind::q8, 64, 64, random);
    const auto fresh = [&] {
        auto e = std::make_unique<Engine>(2, 64, 64, 8);
        e->weight(p.weight);
        e->shared(Input::f32, 64, 0, 8);
        e->shared(Input::f32, 64, 2048, 8);
        e->phase(false, false);
        e->lane(64, 64, 0);
        return e;
    };
    const auto b = [](int id, int offset = 0) { return Operand{Space::buffer, id, offset}; };
    const auto step = [&](Step s) { fresh()->step(s); };
    refused([&] { step({Op::linear, b(1), {b(0)}, 0}); }, "codes are not float32");
    refused([&] { step({Op::linear, b(1), {b(0)}, 3}); }, "a weight that is not there");
    refused([&] { step({Op::exp, b(7), {b(0)}}); }, "a buffer that is not there");
    refused([&] { step({Op::exp, b(1, 32), {b(0)}}); }, "an output beyond its buffer");
    refused([&] { step({Op::add, b(1), {b(0)}}); }, "a missing input");
    refused([&] { step({Op::shift, b(1), {b(0)}, -1, 1}); }, "a piece beyond the state");
    refused([&] { step({Op::dot, b(1), {b(0), b(1)}, -1, -1, 48}); }, "heads that do not divide a tile");
    refused([&] { step({Op::layer_norm, b(1), {b(0), b(0), b(0)}}); }, "a norm by columns");
    refused([&] {
        Engine e(1, 64, 64, 8);
        e.shared(Input::f32, 64, 0, 8), e.shared(Input::f32, 64, 4096, 8);
        e.phase(true, false), e.lane(64, 64, 0);
        e.step({Op::pick, b(1), {b(0)}});
    }, "a pick over all rows");
    refused([&] {
        auto e = fresh();
        e->step({Op::copy, b(e->logits()), {b(0)}});
    }, "logits of all rows");
    refused([&] {
        auto e = fresh();
        const auto far = Operand{Space::constant, e->constant(std::vector<float>(64)), 2147483647};
        e->step({Op::add, b(1), {b(0), far}});
    }, "an offset that overflows");
    refused([&] {
        Engine e(1, 3 * 64, 64, 8);
        const int k = e.shared(Input::f32, 64, 0, 8), wide = e.shared(Input::f32, 128, 4096, 8);
        e.phase(false, false), e.lane(64, 64, 0);
        const auto c = Operand{Space::constant, e.constant(std::vector<float>(64)), 0};
        e.step({Op::wkv4, b(wide), {b(k), b(k), c, c}, -1, 0});
    }, "a wkv4 whose state would be wider than its lane");
    refused([&] {
        auto e = fresh();
        e->step({Op::encode, b(e->shared(Input::codes, 128, 4096, 8)), {b(0)}});
    }, "codes wider than their lane");
    refused([&] {
        Engine e(1, 64, 64, 8);
        const int wide = e.shared(Input::f32, 65536 * 32, 0, 8);
        e.phase(false, false), e.lane(65536 * 32, 32, 0);
        e.step({Op::exp, b(wide), {b(wide)}});
        e.finish();
    }, "more tiles than a share can name");
    refused([&] { fresh()->shared(Input::f32, 64, 0, 7); }, "a buffer of fewer rows than a run may have");
    refused([&] { fresh()->read(0, 1); }, "a read before there is anything");
    refused([&] { Engine(2, 64, 64, 8).finish(); }, "no plan");
    refused([&] { Engine(2, 64, 64, 8).weight({Kind::f32, 16, 1, p.weight.data + 4}); }, "misaligned panels");
    refused([&] { fresh()->weights({0, 1}); }, "a choice of a weight that is not there");
    refused([&] { fresh()->weights({}); }, "a choice of none");
    refused([&] {
        auto e = fresh();
        e->weights({0, -1}), e->weights({0});
    }, "choices of two numbers of groups");
    refused([&] { step({Op::choose, b(1), {b(0)}, 0}); }, "a choice that is not there");
    refused([&] {
        auto e = fresh();
        e->step({Op::choose, b(1), {b(0)}, e->weights({0})});
    }, "codes are not chosen");
    Chooser chooser(1, true);
    refused([&] { chooser.run({1}, {3}, false); }, "a group that is not there");
    refused([&] { chooser.run({1, 1}, {0}, false); }, "sequences without a group");
    Model model(1);
    refused([&] { model.engine->shared(Input::f32, 64, 0, ROWS); }, "a buffer after the end of the plan");
    refused([&] { model.engine->lane(64, 64, 0); }, "a lane after the end of the plan");
    std::vector<Floats> state(1, Floats(STATE, 0.f));
    refused([&] { run(*model.engine, {{V}}, state, true); }, "a token outside the vocabulary");
    refused([&] { run(*model.engine, {std::vector<std::int64_t>(ROWS + 1, 1)}, state, false); }, "too many rows");
}

}  // namespace

int main() {
    law_of_rows();
    two_callers();
    groups_choose_weights();
    wrong_plans();
    if (!failures) std::printf("test_engine: all is well\n");
    return failures ? 1 : 0;
}
