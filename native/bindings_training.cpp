// The recurrences and their gradients as torch's operations call them: over arrays whose memory they read and write.
#include "bindings.h"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "training.h"

namespace nb = nanobind;
using namespace rookery;

namespace {

template <int D>
using In = nb::ndarray<const float, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <int D>
using Out = nb::ndarray<float, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using Resets = std::optional<nb::ndarray<const bool, nb::ndim<2>, nb::c_contig, nb::device::cpu>>;

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("training: " + why); }

template <class Array>
void shaped(const Array& x, std::initializer_list<std::size_t> shape, const char* name) {
    std::size_t axis = 0;
    for (const auto length : shape)
        if (x.shape(axis++) != length) refuse(std::string("the shape of ") + name + " does not fit");
}

const std::uint8_t* checked(const Resets& resets, std::size_t batch, std::size_t time) {
    if (!resets) return nullptr;
    shaped(*resets, {batch, time}, "resets");
    return reinterpret_cast<const std::uint8_t*>(resets->data());
}

// How far the heads of `x` extend, which the others are held against.
Extent extent(const In<4>& x, const Resets& resets, int threads) {
    const std::size_t b = x.shape(0), t = x.shape(1), h = x.shape(2), n = x.shape(3);
    constexpr std::size_t most = 1u << 30;
    if (n % 16 != 0 || n == 0 || n > TRAINED_HEAD) refuse("heads of a multiple of 16 elements up to 256 are wanted");
    if (t >= most || b >= most || h >= most || b * h >= most) refuse("too many sequences, tokens or heads");
    if (threads < 1 || threads > 1024) refuse("1 to 1024 threads are wanted");
    return {static_cast<int>(b), static_cast<int>(t), static_cast<int>(h), static_cast<int>(n), checked(resets, b, t)};
}
void alike(const Extent& e, std::initializer_list<const In<4>*> inputs, std::initializer_list<const Out<4>*> outputs) {
    const auto size = [](int x) { return static_cast<std::size_t>(x); };
    const auto check = [&](const auto& x) {
        shaped(x, {size(e.batch), size(e.time), size(e.heads), size(e.n)}, "an array of the tokens");
    };
    for (const auto* x : inputs) check(*x);
    for (const auto* x : outputs) check(*x);
}
template <class Array>
void square(const Extent& e, const Array& state) {
    const auto size = [](int x) { return static_cast<std::size_t>(x); };
    shaped(state, {size(e.batch), size(e.heads), size(e.n), size(e.n)}, "a state");
}

void forward7(In<4> r, In<4> decay, In<4> k, In<4> v, In<4> a, In<4> b, In<4> state, Resets resets, Out<4> y,
              Out<4> state_out, int threads) {
    const auto e = extent(r, resets, threads);
    alike(e, {&decay, &k, &v, &a, &b}, {&y});
    square(e, state);
    square(e, state_out);
    const Unlocked unlocked;
    run(Forward7{e, r.data(), decay.data(), k.data(), v.data(), a.data(), b.data(), state.data(), y.data(),
                 state_out.data()},
        threads);
}

void backward7(In<4> dy, In<4> dstate_out, In<4> r, In<4> decay, In<4> k, In<4> v, In<4> a, In<4> b, In<4> state,
               Resets resets, Out<4> dr, Out<4> ddecay, Out<4> dk, Out<4> dv, Out<4> da, Out<4> db, Out<4> dstate,
               int threads) {
    const auto e = extent(r, resets, threads);
    alike(e, {&dy, &decay, &k, &v, &a, &b}, {&dr, &ddecay, &dk, &dv, &da, &db});
    square(e, state);
    square(e, dstate_out);
    square(e, dstate);
    const Unlocked unlocked;
    run(Backward7{e, dy.data(), dstate_out.data(), r.data(), decay.data(), k.data(), v.data(), a.data(), b.data(),
                  state.data(), dr.data(), ddecay.data(), dk.data(), dv.data(), da.data(), db.data(), dstate.data()},
        threads);
}

}  // namespace

void bind_training(nb::module_& m) {
    m.attr("TRAINED_HEAD") = TRAINED_HEAD;
    m.def("wkv7", &forward7, nb::arg("r").noconvert(), nb::arg("decay").noconvert(), nb::arg("k").noconvert(),
          nb::arg("v").noconvert(), nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("state").noconvert(),
          nb::arg("resets").noconvert().none(), nb::arg("y").noconvert(), nb::arg("state_out").noconvert(),
          nb::arg("threads"), "Fill y and state_out. Other Python threads run meanwhile.");
    m.def("wkv7_backward", &backward7, nb::arg("dy").noconvert(), nb::arg("dstate_out").noconvert(),
          nb::arg("r").noconvert(), nb::arg("decay").noconvert(), nb::arg("k").noconvert(), nb::arg("v").noconvert(),
          nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("state").noconvert(),
          nb::arg("resets").noconvert().none(), nb::arg("dr").noconvert(), nb::arg("ddecay").noconvert(),
          nb::arg("dk").noconvert(), nb::arg("dv").noconvert(), nb::arg("da").noconvert(), nb::arg("db").noconvert(),
          nb::arg("dstate").noconvert(), nb::arg("threads"), "Fill the gradients. Other Python threads run meanwhile.");
}
