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
