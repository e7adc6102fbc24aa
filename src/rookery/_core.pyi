"""The native core of Rookery (native/bindings.cpp)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def decode_blocks(dtype: str, data: npt.NDArray[np.uint8], values: npt.NDArray[np.float32]) -> None:
    """Fill `values` from blocks. ValueError if the sizes do not match. Other threads run meanwhile."""

def encode_blocks(dtype: str, values: npt.NDArray[np.float32], data: npt.NDArray[np.uint8]) -> None:
    """Fill `data` with the blocks nearest to `values`. ValueError as above. Other threads run meanwhile."""

class Trie:
    """The byte trie of a World-style vocabulary; immutable, safe to share among threads."""

    def __init__(self, text: bytes) -> None:
        """From the text of a vocabulary file. ValueError("line N: why") if it is damaged."""

    def encode(self, text: bytes) -> list[int]:
        """Ids of the greedy longest matches. Other threads run meanwhile."""

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of all tokens, joined. IndexError, OverflowError or TypeError for what is no id."""

    def token(self, id: int) -> bytes:
        """The bytes of one token, b"" for id 0. IndexError if no token has that id."""

    @property
    def largest_id(self) -> int: ...

class Engine:
    """A plan and the threads that run it (native/engine.h). ValueError for what does not fit together.

    An operand is (space, index, column): space 0 a buffer, 1 a constant, 2 none.
    """

    def __init__(self, threads: int, state_size: int, vocabulary: int, max_rows: int) -> None: ...
    @staticmethod
    def input_bytes(kind: int, columns: int) -> int:
        """Bytes of a row of a shared buffer: float32 (0), bf16 (1) or codes (2)."""

    def shared(self, kind: int, width: int, offset: int, rows: int) -> int:
        """A buffer that all phases see, at a byte offset of the arena."""

    def local(self, width: int, slot: int) -> int:
        """A float32 buffer that lives within one lane."""

    def logits(self) -> int:
        """The logits that the caller of `run` gives."""

    def constant(self, values: npt.NDArray[np.float32]) -> int:
        """One row for all rows."""

    def weight(self, kind: str, rows: int, columns: int, data: npt.NDArray[np.uint8]) -> int:
        """Panels, used where they lie."""

    def weights(self, by_group: Sequence[int]) -> int:
        """A choice among weights by the group of a sequence; -1 where it has none. Every choice has as many groups."""

    def table(self, dtype: str, rows: int, columns: int, data: npt.NDArray[np.uint8]) -> int:
        """Rows as stored, used where they lie."""

    def phase(self, by_rows: bool, outputs: bool) -> None: ...
    def lane(self, width: int, tile: int, slots: int) -> None: ...
    def step(
        self,
        op: str,
        out: tuple[int, int, int],
        inputs: Sequence[tuple[int, int, int]],
        number: int = -1,
        state: int = -1,
        n: int = 0,
        eps: float = 0.0,
    ) -> None: ...
    def finish(self) -> None: ...
    def run(
        self,
        ids: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        states: list[npt.NDArray[np.float32]],
        logits: npt.NDArray[np.float32],
        every: bool,
        times: npt.NDArray[np.float64] | None = None,
        groups: Sequence[int] = (),
    ) -> None:
        """Feed rows; states, logits [Q,V] and each phase's seconds are written in place. `groups`: of each sequence,
        for `weights`; -1, or none given: no weight.

        Other Python threads run meanwhile; Ctrl-C ends it.
        """

    def stream(self) -> float:
        """Seconds to read all weights once with all threads, and do nothing else."""

    def read(self, buffer: int, rows: int) -> npt.NDArray[np.float32]:
        """What a shared float32 buffer held after the last run."""

    @property
    def phases(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...

def panel_bytes(kind: str, columns: int) -> int:
    """Bytes of a panel of 16 rows."""

def kind_of(dtype: str) -> str:
    """The kind of panels that holds a storage type exactly. ValueError for an unknown type."""

def pack(
    dtype: str,
    data: npt.NDArray[np.uint8],
    rows: int,
    columns: int,
    transposed: bool,
    kind: str,
    first: int,
    last: int,
    out: npt.NDArray[np.uint8],
) -> None:
    """Fill `out` with panels [first, last) of a row-major weight. Other threads run meanwhile."""

def populate(data: npt.NDArray[np.uint8]) -> None:
    """Have a mapped file's pages here before they are used. Other threads run meanwhile."""

def isa() -> str:
    """The instruction set in use. ValueError for a wrong ROOKERY_ISA."""

def isas() -> list[str]:
    """The instruction sets that run here."""

TRAINED_HEAD: int
"""The largest head that wkv6 and wkv7 take; it must be a multiple of 16."""

# The recurrences below fill the arrays after `resets` [B,T]. ValueError for shapes that do not fit, TypeError for other
# types and layouts. Other Python threads run meanwhile.

_Floats = npt.NDArray[np.float32]
_Resets = npt.NDArray[np.bool_] | None

def wkv4(
    k: _Floats,
    v: _Floats,
    decay: _Floats,
    bonus: _Floats,
    state: _Floats,
    resets: _Resets,
    y: _Floats,
    state_out: _Floats,
    threads: int,
    /,
) -> None:
    """[B,T,C] x2, [C] x2, [B,3,C] -> [B,T,C], [B,3,C]."""

def wkv4_backward(
    dy: _Floats,
    dstate_out: _Floats,
    k: _Floats,
    v: _Floats,
    decay: _Floats,
    bonus: _Floats,
    state: _Floats,
    resets: _Resets,
    dk: _Floats,
    dv: _Floats,
    ddecay: _Floats,
    dbonus: _Floats,
    dstate: _Floats,
    threads: int,
    /,
) -> None:
    """The gradients of what is named alike."""

def wkv6(
    r: _Floats,
    k: _Floats,
    v: _Floats,
    decay: _Floats,
    bonus: _Floats,
    state: _Floats,
    resets: _Resets,
    y: _Floats,
    state_out: _Floats,
    threads: int,
    /,
) -> None:
    """[B,T,H,N] x3, decay like them or [H,N], [H,N], [B,H,N,N] -> [B,T,H,N], [B,H,N,N]."""

def wkv6_backward(
    dy: _Floats,
    dstate_out: _Floats,
    r: _Floats,
    k: _Floats,
    v: _Floats,
    decay: _Floats,
    bonus: _Floats,
    state: _Floats,
    resets: _Resets,
    dr: _Floats,
    dk: _Floats,
    dv: _Floats,
    ddecay: _Floats,
    dbonus: _Floats,
    dstate: _Floats,
    threads: int,
    /,
) -> None:
    """The gradients of what is named alike."""

def wkv7(
    r: _Floats,
    decay: _Floats,
    k: _Floats,
    v: _Floats,
    a: _Floats,
    b: _Floats,
    state: _Floats,
    resets: _Resets,
    y: _Floats,
    state_out: _Floats,
    threads: int,
    /,
) -> None:
    """[B,T,H,N] x6, [B,H,N,N] -> [B,T,H,N], [B,H,N,N]."""

def wkv7_backward(
    dy: _Floats,
    dstate_out: _Floats,
    r: _Floats,
    decay: _Floats,
    k: _Floats,
    v: _Floats,
    a: _Floats,
    b: _Floats,
    state: _Floats,
    resets: _Resets,
    dr: _Floats,
    ddecay: _Floats,
    dk: _Floats,
    dv: _Floats,
    da: _Floats,
    db: _Floats,
    dstate: _Floats,
    threads: int,
    /,
) -> None:
    """The gradients of what is named alike."""
