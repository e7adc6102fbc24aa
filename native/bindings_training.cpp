// The recurrences and their gradients as torch's operations call them: over arrays whose memory they read and write.
#include "bindings.h"

#include <nanobind/stl/optional.h>

#include <initializer_list>
#include <optional>
#include <type_traits>

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

constexpr std::size_t MOST = 1u << 30;

Extent extent(std::size_t b, std::size_t t, std::size_t h, std::size_t n, const Resets& resets, int threads) {
    if (t >= MOST || b >= MOST || h >= MOST || b * h >= MOST) refuse("too many sequences, tokens or heads");
    if (threads < 1 || threads > 1024) refuse("1 to 1024 threads are wanted");
    return {static_cast<int>(b), static_cast<int>(t), static_cast<int>(h), static_cast<int>(n), checked(resets, b, t)};
}
// How far the heads of `x` extend, which the others are held against.
Extent extent(const In<4>& x, const Resets& resets, int threads) {
    const std::size_t n = x.shape(3);
    if (n % 16 != 0 || n == 0 || n > TRAINED_HEAD) refuse("heads of a multiple of 16 elements up to 256 are wanted");
    return extent(x.shape(0), x.shape(1), x.shape(2), n, resets, threads);
}

std::size_t size(int x) { return static_cast<std::size_t>(x); }
template <class... Arrays>
void tokens(const Extent& e, const Arrays&... arrays) {
    (shaped(arrays, {size(e.batch), size(e.time), size(e.heads), size(e.n)}, "an array of the tokens"), ...);
}
template <class... Arrays>
void tokens4(const Extent& e, const Arrays&... arrays) {
    (shaped(arrays, {size(e.batch), size(e.time), size(e.heads)}, "an array of the tokens"), ...);
}
template <class... Arrays>
void states(const Extent& e, const Arrays&... arrays) {
    (shaped(arrays, {size(e.batch), size(e.heads), size(e.n), size(e.n)}, "a state"), ...);
}
template <class... Arrays>
void states4(const Extent& e, const Arrays&... arrays) {
    (shaped(arrays, {size(e.batch), 3, size(e.heads)}, "a state"), ...);
}
template <class... Arrays>
void heads(const Extent& e, const Arrays&... arrays) {
    (shaped(arrays, {size(e.heads), size(e.n)}, "decay or bonus"), ...);
}
template <class... Arrays>
void channels(const Extent& e, const Arrays&... arrays) {
    (shaped(arrays, {size(e.heads)}, "decay or bonus"), ...);
}

void forward4(In<3> k, In<3> v, In<1> decay, In<1> bonus, In<3> state, Resets resets, Out<3> y, Out<3> state_out,
              int threads) {
    const auto e = extent(k.shape(0), k.shape(1), k.shape(2), 1, resets, threads);
    tokens4(e, v, y);
    channels(e, decay, bonus);
    states4(e, state, state_out);
    const Unlocked unlocked;
    run(Forward4{e, k.data(), v.data(), decay.data(), bonus.data(), state.data(), y.data(), state_out.data()}, threads);
}

void backward4(In<3> dy, In<3> dstate_out, In<3> k, In<3> v, In<1> decay, In<1> bonus, In<3> state, Resets resets,
               Out<3> dk, Out<3> dv, Out<1> ddecay, Out<1> dbonus, Out<3> dstate, int threads) {
    const auto e = extent(k.shape(0), k.shape(1), k.shape(2), 1, resets, threads);
    tokens4(e, dy, v, dk, dv);
    channels(e, decay, bonus, ddecay, dbonus);
    states4(e, dstate_out, state, dstate);
    const Unlocked unlocked;
    run(Backward4{e, dy.data(), dstate_out.data(), k.data(), v.data(), decay.data(), bonus.data(), state.data(),
                  dk.data(), dv.data(), ddecay.data(), dbonus.data(), dstate.data()},
        threads);
}

// Of every token, [batch, time, heads, n], or the same for all, [heads, n].
template <class T>
using Decay = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <class T>
bool fixed(const Extent& e, const Decay<T>& decay) {
    if (decay.ndim() == 2)
        heads(e, decay);
    else if (decay.ndim() == 4)
        tokens(e, decay);
    else
        refuse("the shape of decay does not fit");
    return decay.ndim() == 2;
}

void forward6(In<4> r, In<4> k, In<4> v, Decay<const float> decay, In<2> bonus, In<4> state, Resets resets, Out<4> y,
              Out<4> state_out, int threads) {
    const auto e = extent(r, resets, threads);
    tokens(e, k, v, y);
    heads(e, bonus);
    states(e, state, state_out);
    const bool same = fixed(e, decay);
    const Unlocked unlocked;
    run(Forward6{e, r.data(), k.data(), v.data(), decay.data(), bonus.data(), state.data(), same, y.data(),
                 state_out.data()},
        threads);
}

void backward6(In<4> dy, In<4> dstate_out, In<4> r, In<4> k, In<4> v, Decay<const float> decay, In<2> bonus,
               In<4> state, Resets resets, Out<4> dr, Out<4> dk, Out<4> dv, Decay<float> ddecay, Out<2> dbonus,
               Out<4> dstate, int threads) {
    const auto e = extent(r, resets, threads);
    tokens(e, dy, k, v, dr, dk, dv);
    heads(e, bonus, dbonus);
    states(e, dstate_out, state, dstate);
    const bool same = fixed(e, decay);
    if (fixed(e, ddecay) != same) refuse("the shape of ddecay does not fit");
    const Unlocked unlocked;
    run(Backward6{e, dy.data(), dstate_out.data(), r.data(), k.data(), v.data(), decay.data(), bonus.data(),
                  state.data(), same, dr.data(), dk.data(), dv.data(), ddecay.data(), dbonus.data(), dstate.data()},
        threads);
}

void forward7(In<4> r, In<4> decay, In<4> k, In<4> v, In<4> a, In<4> b, In<4> state, Resets resets, Out<4> y,
              Out<4> state_out, int threads) {
    const auto e = extent(r, resets, threads);
    tokens(e, decay, k, v, a, b, y);
    states(e, state, state_out);
    const Unlocked unlocked;
    run(Forward7{e, r.data(), decay.data(), k.data(), v.data(), a.data(), b.data(), state.data(), y.data(),
                 state_out.data()},
        threads);
}

void backward7(In<4> dy, In<4> dstate_out, In<4> r, In<4> decay, In<4> k, In<4> v, In<4> a, In<4> b, In<4> state,
               Resets resets, Out<4> dr, Out<4> ddecay, Out<4> dk, Out<4> dv, Out<4> da, Out<4> db, Out<4> dstate,
               int threads) {
    const auto e = extent(r, resets, threads);
    tokens(e, dy, decay, k, v, a, b, dr, ddecay, dk, dv, da, db);
    states(e, state, dstate_out, dstate);
    const Unlocked unlocked;
    run(Backward7{e, dy.data(), dstate_out.data(), r.data(), decay.data(), k.data(), v.data(), a.data(), b.data(),
                  state.data(), dr.data(), ddecay.data(), dk.data(), dv.data(), da.data(), db.data(), dstate.data()},
        threads);
}

// By place, in the order of the stub. An array that does not fit is refused, not copied: results would go astray.
template <class Type>
auto argument() {
    if constexpr (std::is_same_v<Type, Resets>)
        return nb::arg().noconvert().none();
    else
        return nb::arg().noconvert();
}
template <class... Args>
void define(nb::module_& m, const char* name, void (*function)(Args...), const char* doc) {
    m.def(name, function, argument<Args>()..., doc);
}

}  // namespace

void bind_training(nb::module_& m) {
    m.attr("TRAINED_HEAD") = TRAINED_HEAD;
    define(m, "wkv4", &forward4, "Fill y and the state.");
    define(m, "wkv4_backward", &backward4, "Fill the gradients.");
    define(m, "wkv6", &forward6, "Fill y and the state.");
    define(m, "wkv6_backward", &backward6, "Fill the gradients.");
    define(m, "wkv7", &forward7, "Fill y and the state.");
    define(m, "wkv7_backward", &backward7, "Fill the gradients.");
}
