// rookery._core: what Python sees of the native core. Its stub is src/rookery/_core.pyi.
#include "bindings.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "blocks.h"
#include "trie.h"

namespace nb = nanobind;
using rookery::Trie;

namespace {

std::string_view view(const nb::bytes& data) { return {data.c_str(), data.size()}; }

nb::object encode(const Trie& trie, const nb::bytes& text) {
    std::vector<std::uint32_t> ids;
    {
        const Unlocked unlocked;
        ids = trie.encode(view(text));
    }
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(ids.size())));
    if (!list) nb::raise_python_error();
    for (std::size_t i = 0; i < ids.size(); ++i) {
        PyObject* id = PyLong_FromUnsignedLong(ids[i]);
        if (!id) nb::raise_python_error();
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), id);
    }
    return list;
}

std::string_view token(const Trie& trie, std::size_t id) {
    const auto bytes = id <= trie.largest_id() ? trie.token(static_cast<std::uint32_t>(id)) : std::string_view{};
    if (bytes.empty() && id != 0) throw std::out_of_range("no token has id " + std::to_string(id));
    return bytes;
}

nb::bytes decode(const Trie& trie, nb::handle ids) {
    nb::object fast = nb::steal(PySequence_Fast(ids.ptr(), "ids must be a sequence of integers"));
    if (!fast) nb::raise_python_error();
    std::string text;
    // Asked anew each time: an element's __index__ may run Python that changes the list.
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast.ptr()); ++i) {
        const nb::object item = nb::borrow(PySequence_Fast_GET_ITEM(fast.ptr(), i));
        const nb::object index = nb::steal(PyNumber_Index(item.ptr()));
        const std::size_t id = index ? PyLong_AsSize_t(index.ptr()) : std::numeric_limits<std::size_t>::max();
        if (PyErr_Occurred()) nb::raise_python_error();
        text += token(trie, id);
    }
    return nb::bytes(text.data(), text.size());
}

using Bytes = std::uint8_t;

// The type, if `bytes` and `elements` are the same number of whole blocks of it.
const rookery::BlockType& fitting(const std::string& name, std::size_t bytes, std::size_t elements) {
    const auto* type = rookery::block_type(name);
    if (!type) throw std::invalid_argument("no block type " + name);
    if (bytes % type->bytes || elements % type->elements || bytes / type->bytes != elements / type->elements)
        throw std::invalid_argument(name + ": " + std::to_string(bytes) + " bytes do not hold " +
                                    std::to_string(elements) + " elements");
    return *type;
}

void decode_blocks(const std::string& name, Input1<Bytes> data, Output1<float> values) {
    const auto& type = fitting(name, data.size(), values.size());
    const Unlocked unlocked;
    for (std::size_t i = 0; i < data.size() / type.bytes; ++i)
        type.decode(data.data() + i * type.bytes, values.data() + i * type.elements);
}

void encode_blocks(const std::string& name, Input1<float> values, Output1<Bytes> data) {
    const auto& type = fitting(name, data.size(), values.size());
    const Unlocked unlocked;
    for (std::size_t i = 0; i < data.size() / type.bytes; ++i)
        type.encode(values.data() + i * type.elements, data.data() + i * type.bytes);
}

}  // namespace

NB_MODULE(_core, m) {
    m.doc() = "The native core of Rookery.";
    nb::class_<Trie>(m, "Trie", "The byte trie of a World-style vocabulary; immutable, safe to share among threads.")
        .def("__init__",
             [](Trie* self, const nb::bytes& text) {
                 const Unlocked unlocked;
                 new (self) Trie(rookery::parse_vocabulary(view(text)));
             },
             nb::arg("text"), "From the text of a vocabulary file. ValueError(\"line N: why\") if it is damaged.")
        .def("encode", &encode, nb::arg("text"), nb::sig("def encode(self, text: bytes) -> list[int]"),
             "Ids of the greedy longest matches. Other threads run meanwhile.")
        .def("decode", &decode, nb::arg("ids"),
             nb::sig("def decode(self, ids: collections.abc.Sequence[int]) -> bytes"),
             "The bytes of all tokens, joined. IndexError, OverflowError or TypeError for what is no id.")
        .def("token", [](const Trie& self, std::size_t id) {
                 const auto bytes = token(self, id);
                 return nb::bytes(bytes.data(), bytes.size());
             },
             nb::arg("id"), "The bytes of one token, b\"\" for id 0. IndexError if no token has that id.")
        .def_prop_ro("largest_id", &Trie::largest_id);
    m.def("decode_blocks", &decode_blocks, nb::arg("dtype").noconvert(), nb::arg("data").noconvert(),
          nb::arg("values").noconvert(),
          "Fill `values` from blocks. ValueError if the sizes do not match. Other threads run meanwhile.");
    m.def("encode_blocks", &encode_blocks, nb::arg("dtype").noconvert(), nb::arg("values").noconvert(),
          nb::arg("data").noconvert(),
          "Fill `data` with the nearest blocks. ValueError if the sizes do not match. Other threads run meanwhile.");
    bind_exit();
    bind_engine(m);
    bind_training(m);
}
