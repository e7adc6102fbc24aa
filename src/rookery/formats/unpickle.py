"""A pickle read as data: an interpreter for the few opcodes that torch.save needs for a dict of tensors.

Nothing is imported and nothing is called. A global is a mark to compare with a table; the only "calls" known are those
in `_reduce`. Whatever else a pickle asks for is refused by name (UnsafePickle) before anything happens.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from rookery import errors
from rookery.formats.raw import brief

MAX_BYTES = 2**26
MAX_STEPS = 1_000_000  # about 25,000 tensors; bounds the memory that tiny opcodes can claim

STORAGES = {
    "DoubleStorage": "f64", "FloatStorage": "f32", "HalfStorage": "f16", "BFloat16Storage": "bf16",
    "LongStorage": "i64", "IntStorage": "i32", "ShortStorage": "i16", "CharStorage": "i8", "ByteStorage": "u8",
    "BoolStorage": "bool", "UntypedStorage": "u8",
}  # fmt: skip
DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip
OTHER_DTYPES = ("uint", "float8", "float4", "complex", "qint", "quint")
FUNCTIONS = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "torch Size",
}


@dataclass(frozen=True, slots=True)
class Global:
    """A name the pickle asked for, as "module name"; only names of the tables above are ever made into one."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `size` elements in the archived file called `key`."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Pickled:
    """A tensor that the pickle describes: a strided window into a storage; nothing of it is checked yet."""

    storage: Storage
    offset: Any
    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    dtype: str


class Unpickler:
    """One pass over one pickle. Raises UnsafePickle, BadHeader, TruncatedFile, TooLarge, UnsupportedType."""

    def __init__(self, path: str, text: bytes) -> None:
        if len(text) > MAX_BYTES:
            raise errors.TooLarge(path, f"its pickle takes {len(text)} bytes; at most {MAX_BYTES} are allowed")
        self.path = path
        self.text = text
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """What the pickle describes, in dicts, lists, tuples, numbers, texts, Global, Storage and Pickled."""
        for _ in range(MAX_STEPS):
            opcode = self.take(1)
            if opcode == b".":
                return self.pop()
            handler = OPCODES.get(opcode)
            if handler is None:
                raise errors.UnsafePickle(self.path, f"its pickle uses opcode {opcode!r}, which no plain tensor needs")
            handler(self)
        raise errors.TooLarge(self.path, f"its pickle takes more than {MAX_STEPS} steps")

    def bad(self, why: str) -> NoReturn:
        raise errors.BadHeader(self.path, f"damaged pickle: {why} at byte {self.position}")

    def take(self, count: int) -> bytes:
        piece = self.text[self.position : self.position + count]
        if len(piece) < count:
            raise errors.TruncatedFile(self.path, "its pickle ends too early")
        self.position += count
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, code: str) -> str:
        try:
            return self.take(self.number(code)).decode("utf-8")
        except UnicodeDecodeError:
            self.bad("a text is not UTF-8")

    def line(self) -> str:
        end = self.text.find(b"\n", self.position, self.position + 256)
        if end < 0:
            self.bad("a name does not end")
        name = self.take(end - self.position)
        self.position += 1
        return name.decode("ascii", "backslashreplace")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.bad("nothing on the stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The value on the stack's top, which must be of this kind."""
        value = self.pop()
        self.push(value)
        if not isinstance(value, kind):
            self.bad(f"{kind.__name__} wanted")
        return value

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.bad("no mark on the stack")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            self.bad("a key has no value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Keys of other kinds are not needed, and hashing a deep tuple could overrun the C stack.
            if not isinstance(key, str | int | float | None):
                self.bad("a dict key is neither text nor number")
            target[key] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.bad("a value is used before it is made")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def find(self, module: Any, name: Any) -> None:
        """Push the mark of a known global; refuse any other."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.bad("a global's name is not text")
        full = f"{module} {name}"
        known = full in FUNCTIONS or (module == "torch" and (name in STORAGES or name in DTYPES))
        if module == "torch.storage" and name == "UntypedStorage":
            known, full = True, "torch UntypedStorage"
        asked = brief(f"{module}.{name}")
        if not known and module == "torch" and (name.endswith("Storage") or name.startswith(OTHER_DTYPES)):
            raise errors.UnsupportedType(self.path, f"has tensors of {asked}; known: {', '.join(DTYPES)}")
        if not known:
            raise errors.UnsafePickle(self.path, f"its pickle asks for {asked} (not run); save the tensors alone")
        self.push(Global(full))

    def persistent(self) -> None:
        """('storage', type, key, device, number of elements) -> Storage; the device does not matter to us."""
        match self.pop():
            case ("storage", Global(name), str(key), str(), int(size)) if name.removeprefix("torch ") in STORAGES:
                self.push(Storage(STORAGES[name.removeprefix("torch ")], key, size))
            case _:
                self.bad("a reference to something that is no storage")

    def reduce(self) -> None:
        """The calls that we know, done by hand."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global):
            self.bad("a call of something that is no function")
        match function.name, arguments:
            case "torch._utils _rebuild_tensor_v2", (Storage() as storage, offset, tuple(shape), tuple(stride), *_):
                self.push(Pickled(storage, offset, shape, stride, storage.dtype))
            case "torch._utils _rebuild_tensor_v3", (
                Storage() as storage, offset, tuple(shape), tuple(stride), _, _, Global(dtype), *_,
            ) if dtype.removeprefix("torch ") in DTYPES:  # fmt: skip
                self.push(Pickled(storage, offset, shape, stride, DTYPES[dtype.removeprefix("torch ")]))
            case "torch._utils _rebuild_parameter", (Pickled() as tensor, _, _):
                self.push(tensor)
            case "torch Size", (tuple(shape),):
                self.push(shape)
            case "collections OrderedDict", ():
                self.push({})
            case _:
                self.bad(f"strange arguments for {function.name.replace(' ', '.')}")

    def build(self) -> None:
        """Attributes of an OrderedDict (torch hangs `_metadata` on a state dict): dropped."""
        self.pop()
        self.top(dict)

    def protocol(self) -> None:
        if not 2 <= (version := self.take(1)[0]) <= 5:
            self.bad(f"protocol {version}, wanted 2 to 5,")

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)


OPCODES: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": Unpickler.protocol,
    b"\x95": lambda u: u.take(8),  # FRAME: its length is not needed
    b"(": lambda u: u.marks.append(len(u.stack)),
    b"0": Unpickler.pop,
    b"1": Unpickler.pop_to_mark,
    b"2": lambda u: u.push(u.top(object)),
    b"N": lambda u: u.push(None),
    b"\x88": lambda u: u.push(True),
    b"\x89": lambda u: u.push(False),
    b"J": lambda u: u.push(u.number("i")),
    b"K": lambda u: u.push(u.number("B")),
    b"M": lambda u: u.push(u.number("H")),
    b"\x8a": lambda u: u.push(int.from_bytes(u.take(u.number("B")), "little", signed=True)),
    b"G": lambda u: u.push(struct.unpack(">d", u.take(8))[0]),
    b"X": lambda u: u.push(u.string("I")),
    b"\x8c": lambda u: u.push(u.string("B")),
    b"\x8d": lambda u: u.push(u.string("Q")),
    b"}": lambda u: u.push({}),
    b"]": lambda u: u.push([]),
    b")": lambda u: u.push(()),
    b"t": lambda u: u.push(tuple(u.pop_to_mark())),
    b"\x85": lambda u: u.tuple_of(1),
    b"\x86": lambda u: u.tuple_of(2),
    b"\x87": lambda u: u.tuple_of(3),
    b"s": lambda u: u.set_items([u.pop(), u.pop()][::-1]),
    b"u": lambda u: u.set_items(u.pop_to_mark()),
    b"a": lambda u: u.extend([u.pop()]),
    b"e": lambda u: u.extend(u.pop_to_mark()),
    b"h": lambda u: u.get(u.number("B")),
    b"j": lambda u: u.get(u.number("I")),
    b"q": lambda u: u.put(u.number("B")),
    b"r": lambda u: u.put(u.number("I")),
    b"\x94": lambda u: u.put(len(u.memo)),
    b"c": lambda u: u.find(u.line(), u.line()),
    b"\x93": lambda u: u.find(*[u.pop(), u.pop()][::-1]),
    b"Q": Unpickler.persistent,
    b"R": Unpickler.reduce,
    b"b": Unpickler.build,
}
