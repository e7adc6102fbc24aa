// What the files of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

template <class T>
using Input1 = nanobind::ndarray<const T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Output1 = nanobind::ndarray<T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// While it lives, other Python threads run and the interpreter does not end. To be made with the interpreter's lock held;
// throws SystemExit in a thread that comes after the end has begun.
class Unlocked {
    struct Inside {
        Inside();
        ~Inside();
    } inside_;
    nanobind::gil_scoped_release release_;
};
bool ending();                   // whether the interpreter waits for this thread to be through
[[noreturn]] void end_thread();  // without a word

void bind_engine(nanobind::module_& m);
void bind_exit();
void bind_training(nanobind::module_& m);
