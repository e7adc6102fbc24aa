// Work without the interpreter's lock, and the interpreter's end: a thread that wanted the lock back after that would be
// ended in the middle of our frames, which aborts the process.
#include <atomic>
#include <chrono>
#include <thread>

#include "bindings.h"

namespace nb = nanobind;

namespace {

std::atomic<int> inside{0};
std::atomic<std::thread::id> closer{};  // the thread that ends the interpreter, once it does

void leave() {
    closer = std::this_thread::get_id();
    while (inside > 0) {
        const nb::gil_scoped_release release;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace

bool ending() {
    const auto id = closer.load();
    return id != std::thread::id() && id != std::this_thread::get_id();
}

void end_thread() {
    PyErr_SetNone(PyExc_SystemExit);
    nb::raise_python_error();
}

Unlocked::Inside::Inside() {
    if (ending()) end_thread();
    ++inside;
}

Unlocked::Inside::~Inside() { --inside; }

void bind_exit() {
    nb::module_::import_("atexit").attr("register")(nb::cpp_function(&leave));
    const auto os = nb::module_::import_("os");
    if (nb::hasattr(os, "register_at_fork"))  // in a child nobody is inside
        os.attr("register_at_fork")(nb::arg("after_in_child") = nb::cpp_function([] { inside = 0; }));
}
