// The engine, the panels and the instruction sets as Python sees them.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <tuple>

#include "engine.h"
#include "panels.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace nb = nanobind;
using namespace rookery;

namespace {

constexpr std::array<std::string_view, 26> kOps = {
    "add",   "subtract", "multiply",   "divide",     "negative",  "exp",  "tanh",  "sigmoid", "silu",
    "relu",  "square",   "fma",        "layer_norm", "group_norm", "normalize", "dot",  "shift", "wkv4",
    "wkv6",  "wkv7",     "linear",     "encode",     "embed",     "pick", "copy", "choose",
};
constexpr std::array<Kind, KINDS> kKinds = {Kind::f32, Kind::f16, Kind::bf16, Kind::q8, Kind::q4, Kind::x8};

Kind kind_named(const std::string& name) {
    for (const auto kind : kKinds)
        if (name == name_of(kind)) return kind;
    throw std::invalid_argument("no kind of panels " + name);
}

Input input_numbered(int kind) {
    if (kind < 0 || kind >= INPUTS) throw std::invalid_argument("a buffer is float32 (0), bf16 (1) or codes (2)");
    return static_cast<Input>(kind);
}

int positive(int n, const char* what) {
    if (n < 1) throw std::invalid_argument(std::string(what) + " must be 1 or more");
    return n;
}

// An engine and the Python arrays whose memory it uses.
struct Held {
    Held(int threads, std::size_t state_size, int vocabulary, int max_rows)
        : engine(threads, state_size, vocabulary, max_rows) {}
    std::vector<nb::object> arrays;
    Engine engine;
};

using Triple = std::tuple<int, int, int>;

Operand operand(const Triple& triple) {
    const auto [space, index, offset] = triple;
    if (space < 0 || space > 2) throw std::invalid_argument("an operand is a buffer (0), a constant (1) or none (2)");
    return {static_cast<Space>(space), index, offset};
}

int add_weight(Held& self, const std::string& kind, int rows, int columns, Input1<std::uint8_t> data) {
    const Weight w{kind_named(kind), positive(rows, "rows"), positive(columns, "columns"), data.data()};
    if (data.size() != panel_bytes(w.kind, columns) * static_cast<std::size_t>(panels(rows)))
        throw std::invalid_argument("the bytes are not these panels");
    const int id = self.engine.weight(w);
    self.arrays.push_back(nb::cast(data));
    return id;
}

int add_table(Held& self, const std::string& dtype, int rows, int columns, Input1<std::uint8_t> data) {
    const auto* blocks = block_type(dtype);
    const std::size_t bytes = blocks ? blocks->bytes : dtype == "f32" ? 4 : 2, elements = blocks ? blocks->elements : 1;
    const auto size = static_cast<std::size_t>(positive(rows, "rows")) * static_cast<std::size_t>(positive(columns, "columns"));
    if (size % elements || data.size() != size / elements * bytes)
        throw std::invalid_argument("the bytes are not this table");
    const int id = self.engine.table({dtype, rows, columns, data.data(), nullptr, 0});
    self.arrays.push_back(nb::cast(data));
    return id;
}

void add_step(Held& self, const std::string& op, const Triple& out, const std::vector<Triple>& inputs, int number,
              int state, int n, float eps) {
    const auto found = std::ranges::find(kOps, op);
    if (found == kOps.end()) throw std::invalid_argument("no operation " + op);
    if (inputs.size() > Step::INPUTS) throw std::invalid_argument("too many inputs");
    Step step{static_cast<Op>(found - kOps.begin()), operand(out), {}, number, state, n, eps};
    std::ranges::transform(inputs, step.in, operand);
    self.engine.step(step);
}

// Ctrl-C: asked on the calling thread while it works.
bool interrupted() {
    const nb::gil_scoped_acquire acquire;
    return ending() || PyErr_CheckSignals() != 0;
}

void run(Held& self, Input1<std::int64_t> ids, Input1<std::int64_t> lengths, const nb::list& states,
         nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> logits, bool every,
         std::optional<Output1<double>> times, const std::vector<int>& groups) {
    if (times && times->size() != static_cast<std::size_t>(self.engine.phases()))
        throw std::invalid_argument("times of every phase are wanted");
    std::vector<int> counts;
    std::size_t rows = 0;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
        const auto length = lengths.data()[b];
        if (length < 1 || length > self.engine.max_rows()) throw std::invalid_argument("a length outside 1 to max_rows");
        counts.push_back(static_cast<int>(length));
        rows += static_cast<std::size_t>(length);
    }
    if (rows != ids.size() || nb::len(states) != counts.size())
        throw std::invalid_argument("ids, lengths and states do not fit together");
    if (logits.shape(0) != (every ? rows : counts.size()) ||
        logits.shape(1) != static_cast<std::size_t>(self.engine.vocabulary()))
        throw std::invalid_argument("logits of another shape are wanted");
    std::vector<float*> pointers;
    std::vector<Output1<float>> held;
    for (nb::handle item : states) {
        auto state = nb::cast<Output1<float>>(item, false);
        if (state.size() != self.engine.state_size()) throw std::invalid_argument("a state of another size");
        pointers.push_back(state.data());
        held.push_back(std::move(state));
    }
    auto sorted = pointers;
    std::ranges::sort(sorted);
    if (std::ranges::adjacent_find(sorted) != sorted.end())
        throw std::invalid_argument("one state cannot serve two sequences of a step");
    bool done;
    self.engine.wake();
    {
        const Unlocked unlocked;
        done = self.engine.run(ids.data(), counts, pointers, logits.data(), every, interrupted, times ? times->data() : nullptr, groups);
    }
    if (!done && ending()) end_thread();
    if (!done) nb::raise_python_error();
}

nb::object read_buffer(const Held& self, int buffer, int rows) {
    auto values = std::make_unique<std::vector<float>>(self.engine.read(buffer, rows));
    auto* raw = values.release();
    const nb::capsule owner(raw, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, float>(
        raw->data(), {static_cast<std::size_t>(rows), static_cast<std::size_t>(self.engine.buffer_width(buffer))}, owner));
}

void pack_panels(const std::string& dtype, Input1<std::uint8_t> data, int rows, int columns, bool transposed,
                 const std::string& kind, int first, int last, Output1<std::uint8_t> out) {
    const auto to = kind_named(kind);
    positive(rows, "rows"), positive(columns, "columns");
    if (first < 0 || last < first || last > panels(rows)) throw std::invalid_argument("no such panels");
    if (out.size() != panel_bytes(to, columns) * static_cast<std::size_t>(last - first))
        throw std::invalid_argument("the output has another size");
    const auto* blocks = block_type(dtype);
    const std::size_t bytes = blocks ? blocks->bytes : dtype == "f32" ? 4 : 2, elements = blocks ? blocks->elements : 1;
    if (static_cast<std::size_t>(columns) % elements ||
        data.size() != static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) / elements * bytes)
        throw std::invalid_argument("the bytes are not this weight");
    const Unlocked unlocked;
    pack(dtype, data.data(), rows, columns, transposed, to, first, last, out.data());
}

// Pages of a mapped file, asked for at once: one by one they cost six times as long, in the first run.
void populate(Input1<std::uint8_t> data) {
#if defined(__linux__)
    constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14; refused before, and the pages come when needed
    const Unlocked unlocked;
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(data.data()) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(data.data()) + data.size();
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, kPopulateRead);
#else
    (void)data;
#endif
}

}  // namespace

void bind_engine(nb::module_& m) {
    nb::set_leak_warnings(false);  // a model in a cache at the end of the interpreter is no leak
    nb::class_<Held>(m, "Engine", "A plan and the threads that run it. ValueError for what does not fit together.")
        .def(nb::init<int, std::size_t, int, int>(), nb::arg("threads"), nb::arg("state_size"), nb::arg("vocabulary"),
             nb::arg("max_rows"))
        .def_static("input_bytes", [](int kind, int columns) {
                 return input_bytes(input_numbered(kind), positive(columns, "columns"));
             }, nb::arg("kind"), nb::arg("columns"), "Bytes of a row of a shared buffer: float32 (0), bf16 (1) or codes (2).")
        .def("shared", [](Held& self, int kind, int width, std::size_t offset, int rows) {
                 return self.engine.shared(input_numbered(kind), width, offset, rows);
             }, nb::arg("kind"), nb::arg("width"), nb::arg("offset"), nb::arg("rows"),
             "A buffer that all phases see, at a byte offset of the arena.")
        .def("local", [](Held& self, int width, int slot) { return self.engine.local(width, slot); }, nb::arg("width"),
             nb::arg("slot"), "A float32 buffer that lives within one lane.")
        .def("logits", [](Held& self) { return self.engine.logits(); }, "The logits that the caller of run() gives.")
        .def("constant", [](Held& self, Input1<float> values) {
                 return self.engine.constant({values.data(), values.data() + values.size()});
             }, nb::arg("values").noconvert(), "One row for all rows.")
        .def("weight", &add_weight, nb::arg("kind"), nb::arg("rows"), nb::arg("columns"), nb::arg("data").noconvert(),
             "Panels, used where they lie.")
        .def("weights", [](Held& self, std::vector<int> by_group) { return self.engine.weights(std::move(by_group)); },
             nb::arg("by_group"), "A choice among weights by the group of a sequence; -1 where it has none.")
        .def("table", &add_table, nb::arg("dtype"), nb::arg("rows"), nb::arg("columns"), nb::arg("data").noconvert(),
             "Rows as stored, used where they lie.")
        .def("phase", [](Held& self, bool by_rows, bool outputs) { self.engine.phase(by_rows, outputs); },
             nb::arg("by_rows"), nb::arg("outputs"))
        .def("lane", [](Held& self, int width, int tile, int slots) { self.engine.lane(width, tile, slots); },
             nb::arg("width"), nb::arg("tile"), nb::arg("slots"))
        .def("step", &add_step, nb::arg("op"), nb::arg("out"), nb::arg("inputs"), nb::arg("number") = -1,
             nb::arg("state") = -1, nb::arg("n") = 0, nb::arg("eps") = 0.0f,
             "An operation; operands are (0 buffer | 1 constant | 2 none, index, column).")
        .def("finish", [](Held& self) { self.engine.finish(); })
        .def("run", &run, nb::arg("ids").noconvert(), nb::arg("lengths").noconvert(), nb::arg("states"),
             nb::arg("logits").noconvert(), nb::arg("every"), nb::arg("times").noconvert() = nb::none(),
             nb::arg("groups") = std::vector<int>(),
             "Feed rows; states, logits and the phases' seconds are written in place. Other threads run meanwhile.")
        .def("stream", [](Held& self) {
                 self.engine.wake();
                 const Unlocked unlocked;
                 return self.engine.stream();
             }, "Seconds to read all weights once with all threads, and do nothing else.")
        .def("read", &read_buffer, nb::arg("buffer"), nb::arg("rows"), nb::sig("def read(self, buffer: int, rows: int) -> numpy.typing.NDArray[numpy.float32]"),
             "What a shared float32 buffer held after the last run.")
        .def_prop_ro("phases", [](const Held& self) { return self.engine.phases(); })
        .def_prop_ro("threads", [](const Held& self) { return self.engine.threads(); })
        .def_prop_ro("isa", [](const Held& self) { return self.engine.set().name; })
        .def_prop_ro("weight_bytes", [](const Held& self) { return self.engine.weight_bytes(); })
        .def_prop_ro("arena_bytes", [](const Held& self) { return self.engine.arena_bytes(); });

    m.def("panel_bytes", [](const std::string& kind, int columns) {
              return panel_bytes(kind_named(kind), positive(columns, "columns"));
          }, nb::arg("kind"), nb::arg("columns"), "Bytes of a panel of 16 rows.");
    m.def("kind_of", [](const std::string& dtype) { return name_of(kind_of(dtype)); }, nb::arg("dtype"),
          "The kind of panels that holds a storage type exactly.");
    m.def("pack", &pack_panels, nb::arg("dtype"), nb::arg("data").noconvert(), nb::arg("rows"), nb::arg("columns"),
          nb::arg("transposed"), nb::arg("kind"), nb::arg("first"), nb::arg("last"), nb::arg("out").noconvert(),
          "Fill `out` with panels [first, last). Other threads run meanwhile.");
    m.def("populate", &populate, nb::arg("data").noconvert(),
          "Have a mapped file's pages here before they are used. Other threads run meanwhile.");
    m.def("isa", [] { return kernels().name; }, "The instruction set in use. ValueError for a wrong ROOKERY_ISA.");
    m.def("isas", [] {
              std::vector<std::string> names;
              for (const char* name : {"generic", "avx2", "avx512", "neon"})
                  if (kernels(name)) names.emplace_back(name);
              return names;
          }, "The instruction sets that run here.");
}
