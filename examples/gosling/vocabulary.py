"""A small World-style vocabulary: python vocabulary.py TRAIN.jsonl -o vocabulary.txt [-n 4096].

Ids: 0 ends a text (and is not in the file), 1 to 256 the single bytes, the rest pieces by falling length, then bytes.
A piece stays within a word with the space before it, or within a run of punctuation or of line ends; digits and line
ends before text stay alone, so a prompt that ends with a word, a digit or a blank line is cut as in training.

Greedy matching takes the longest piece there is, also where a shorter one would lead on better, so pieces are judged
by what greedy matching does with them: from many frequent substrings those that save the fewest tokens go, a share at
a time; then pieces that stand side by side most often are joined and as many go again, while it helps.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Container
from itertools import pairwise
from pathlib import Path

# How the text falls apart before pieces are looked for; every byte is in exactly one part.
PARTS = re.compile(rb" ?[A-Za-z]+(?:'[a-z]+)?|[0-9]|\n+| +(?![A-Za-z])|[^A-Za-z0-9\s]+|\s")
WHOLE = (b"User:", b"Assistant:", b"\n\n")  # of chat; kept whatever they save
LONGEST = 16
DOCUMENTS = 100
CANDIDATES = 24_000
GOES = 0.1  # of the pieces, each time
ROUNDS, JOINED = 30, 400


def parts(texts: list[str]) -> Counter[bytes]:
    """How often each part occurs; not those that are often in few texts, which are mostly the names of one book."""
    found, homes = Counter[bytes](), Counter[bytes]()
    for text in texts:
        here = Counter(PARTS.findall(text.encode()))
        found.update(here)
        homes.update(here.keys())
    return Counter({part: n for part, n in found.items() if n < DOCUMENTS or homes[part] >= DOCUMENTS})


def candidates(words: Counter[bytes]) -> set[bytes]:
    """The substrings that would save most if nothing else were there."""
    found: Counter[bytes] = Counter()
    for word, count in words.items():
        for begin in range(len(word) - 1):
            for end in range(begin + 2, min(len(word), begin + LONGEST) + 1):
                found[word[begin:end]] += count
    saved = {piece: count * (len(piece) - 1) for piece, count in found.items()}
    return set(sorted(saved, key=lambda piece: (-saved[piece], piece))[:CANDIDATES])


def cut(word: bytes, pieces: Container[bytes]) -> list[bytes]:
    """`word` as greedy longest match divides it."""
    found, at = [], 0
    while at < len(word):
        for end in range(min(len(word), at + LONGEST), at + 1, -1):
            if word[at:end] in pieces:
                break
        else:
            end = at + 1
        found.append(word[at:end])
        at = end
    return found


def uses(words: Counter[bytes], pieces: set[bytes]) -> tuple[int, Counter[bytes], Counter[bytes]]:
    """Tokens in all, how often each piece is used, and how often two side by side would make one."""
    total, used, pairs = 0, Counter[bytes](), Counter[bytes]()
    for word, count in words.items():
        found = cut(word, pieces)
        total += count * len(found)
        for piece in found:
            used[piece] += count
        for left, right in pairwise(found):
            if len(left) + len(right) <= LONGEST:
                pairs[left + right] += count
    return total, used, pairs


def prune(words: Counter[bytes], pieces: set[bytes], size: int) -> set[bytes]:
    """The `size` pieces that are left when those that save least go, a share of all at a time."""
    pieces = set(pieces)
    while len(pieces) > size:
        _, used, _ = uses(words, pieces)
        saved = {}
        for piece in pieces - set(WHOLE):
            saved[piece] = used[piece] * (len(cut(piece, _Without(pieces, piece))) - 1)
        go = min(len(pieces) - size, max(32, int(len(pieces) * GOES)))
        pieces -= set(sorted(saved, key=lambda piece: (saved[piece], piece))[:go])
    return pieces


def choose(words: Counter[bytes], size: int) -> set[bytes]:
    best = prune(words, candidates(words) | set(WHOLE), size)
    least, _, pairs = uses(words, best)
    for _ in range(ROUNDS):
        joined = [p for p in sorted(pairs, key=lambda piece: (-pairs[piece], piece)) if p not in best][:JOINED]
        tried = prune(words, best | set(joined), size)
        total, _, pairs = uses(words, tried)
        if total >= least:
            break
        best, least = tried, total
    return best


class _Without:
    """A set but for one member, not copied."""

    def __init__(self, pieces: set[bytes], without: bytes) -> None:
        self._pieces, self._without = pieces, without

    def __contains__(self, piece: object) -> bool:
        return piece != self._without and piece in self._pieces


def lines(pieces: set[bytes]) -> list[str]:
    tokens = [*(bytes((byte,)) for byte in range(256)), *sorted(pieces, key=lambda piece: (-len(piece), piece))]
    return [f"{id} {_literal(token)} {len(token)}" for id, token in enumerate(tokens, 1)]


def _literal(token: bytes) -> str:
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jsonl", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-n", "--size", type=int, default=4096, help="ids in all, 0 among them (default: 4096)")
    o = parser.parse_args()
    with o.jsonl.open(encoding="utf-8") as file:
        words = parts([json.loads(line)["text"] for line in file])
    pieces = choose(words, o.size - 257)
    o.out.write_text("\n".join(lines(pieces)) + "\n", "utf-8", newline="\n")
    size = sum(len(word) * count for word, count in words.items())
    print(f"{o.size} ids, {size / uses(words, pieces)[0]:.3f} bytes per token of the words looked at")


if __name__ == "__main__":
    main()
