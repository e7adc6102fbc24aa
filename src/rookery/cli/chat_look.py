"""How a talk looks in a terminal: replies as they come, tables, the tree, the state. Nothing is decided here."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery.cli.chat_commands import COMMANDS
from rookery.cli.main import printable

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # these could show a text in another order than it has
_FULL, _PARTS = "█", " ▏▎▍▌▋▊▉"


def harmless(text: str) -> str:
    """`text` as a terminal may have it: line ends and tabs as they are, other control characters spelt out."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def _acts(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs") or ord(c) in _BIDI


def brief(text: str, width: int = 60) -> str:
    """The beginning of `text` on one line."""
    line = " ".join(text.split())
    return printable(line if len(line) <= width else line[: width - 1] + "…")


def amount(n: float) -> str:
    """Bytes for people: 98 KB, 2.4 MB."""
    for unit in ("B", "KB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if n >= 10 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


class Screen:
    """The terminal. Replies go straight to it, all else through Rich, which knows NO_COLOR and TERM=dumb."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
        self._blank = ""  # the end of what came of a reply: shown when more comes
        self._open = False  # whether the cursor stands behind a reply

    def piece(self, text: str) -> None:
        """A part of a reply, at once."""
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if shown:
            sys.stdout.write(harmless(shown))
            sys.stdout.flush()
            self._open = True

    def end(self) -> None:
        """The reply is over: the next thing begins on a line of its own."""
        if self._open:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._open, self._blank = False, ""

    def note(self, text: str) -> None:
        self._line(text, "dim")

    def error(self, text: str) -> None:
        self._line(text, "red")

    def _line(self, text: str, style: str) -> None:
        """Wrapped between words, but for a word that no line holds: a path stays one piece, to be copied."""
        self.end()
        line = printable(text)
        longest = max(map(len, line.split()), default=0)
        self.console.print(line, style=style, soft_wrap=longest > self.console.width)

    def heading(self, title: str, rest: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble((printable(title), "bold"), printable(rest)))

    def help(self) -> None:
        self.table(None, [(f"/{name} {argument}".rstrip(), what) for name, (argument, what) in COMMANDS.items()])
        self.note("Alt-Enter, or a \\ at the end of a line, starts another line. Ctrl-C stops a reply.")

    def table(self, head: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> None:
        """Columns of text; the first stays whole, the others wrap."""
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, show_header=head is not None, padding=(0, 2, 0, 0), header_style="bold")
        rows = list(rows)
        for i in range(len(head) if head else len(rows[0])):
            drawn.add_column(head[i] if head else "", no_wrap=i == 0)
        for row in rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print(drawn)

    def lines(self, rows: Iterable[tuple[str, str]]) -> None:
        """Lines cut at the width of the terminal: what is drawn dim, and the text."""
        from rich.text import Text

        for drawn, text in rows:
            line = Text.assemble((drawn, "dim"), printable(text))
            self.console.print(line, no_wrap=True, overflow="ellipsis")

    def state(self, state: Any, before: Any) -> None:
        """Size, and by layer the root mean square of each piece and of what the last turn changed."""
        flat = state.flat
        self.console.print(f"{flat.size:,} numbers, {amount(flat.nbytes)}, whatever the length of the talk")
        sizes, changes = by_layer(state), by_layer(state, before) if before is not None else None
        width = max(6, min(40, self.console.width - 34))
        top = max(sizes) or 1.0
        rows = []
        for i, size in enumerate(sizes):
            change = f"{changes[i]:.4f}" if changes else "-"
            rows.append((f"{i}", f"{size:.4f}", bar(size / top, width), change))
        self.table(("layer", "rms", "", "changed"), rows)


def by_layer(state: Any, other: Any = None) -> list[float]:
    """The root mean square of every layer's numbers, or of their difference from `other`'s.

    Of version 4's WKV only the sums count: the third row is an exponent, and -1e30 where nothing was read.
    """
    out = []
    for i in range(state.config.n_layer):
        rows = [_numbers(state, i), *([_numbers(other, i)] if other is not None else [])]
        d = rows[0] - rows[1] if len(rows) > 1 else rows[0]
        out.append(float(np.sqrt((d * d).mean())))
    return out


def _numbers(state: Any, i: int) -> Any:
    views = vars(state.layer(i))
    wkv = views["wkv"][:2] if state.config.version == "4" else views["wkv"]
    return np.concatenate([np.ravel(wkv), views["att_shift"], views["ffn_shift"]]).astype(np.float64)


def bar(share: float, width: int) -> str:
    """A bar of at most `width` cells, an eighth of a cell fine."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return (_FULL * (eighths // 8) + _PARTS[eighths % 8]).strip()


def tree_lines(rows: Sequence[tuple[str | None, Any, Sequence[str], bool]]) -> list[tuple[str, str]]:
    """A talk's tree for `Screen.lines`: a turn without a fork stays in its column, a fork opens new ones.

    rows: (id of the turn before, turn, heads, here), in the order of `Session.tree`.
    """
    children, seen = Counter(parent for parent, *_ in rows), Counter[str | None]()
    short = id_length([turn.id for _, turn, *_ in rows])
    rest: dict[str | None, str] = {None: ""}  # what stands before the turns below
    lines = []
    for parent, turn, heads, here in rows:
        seen[parent] += 1
        before = after = rest[parent]
        if children[parent] > 1:
            last = seen[parent] == children[parent]
            before, after = before + ("└─ " if last else "├─ "), after + ("   " if last else "│  ")
        rest[turn.id] = after
        marks = ", ".join(printable(head) for head in heads)
        where = f"[{marks}] " if marks else ""
        drawn = f"{'*' if here else ' '} {before}{turn.id[:short]} "
        lines.append((drawn, f"{where}{brief(turn.user, 40)} → {brief(turn.reply)}"))
    return lines


def id_length(ids: Sequence[str]) -> int:
    """How many digits tell all `ids` apart: 4 at least."""
    for n in range(4, 32):
        if len({id[:n] for id in ids}) == len(set(ids)):
            return n
    return 32


@dataclass(frozen=True)
class Status:
    """What the status line says, the most wanted first."""

    model: str
    talk: str
    turns: int
    state_bytes: int
    speed: float | None
    sampling: str

    def line(self, width: int) -> str:
        """The parts that fit into `width` cells."""
        from rich.cells import cell_len, set_cell_size

        speed = f"{self.speed:,.0f} tokens/s" if self.speed is not None else ""
        parts = [
            self.model,
            self.talk,
            plural(self.turns, "turn"),
            speed,
            f"state {amount(self.state_bytes)}",
            self.sampling,
        ]
        line = ""
        for part in filter(None, map(printable, parts)):
            longer = f"{line} · {part}" if line else f" {part}"
            line = longer if cell_len(longer) <= width else line
        return line or set_cell_size(f" {printable(self.model)}", width)


def ago(then: float) -> str:
    """How long ago a moment was."""
    seconds = max(0.0, time.time() - then)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return f"{plural(int(seconds // size), unit)} ago"
    return "just now"


def plural(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
