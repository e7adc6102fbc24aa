"""What an experiment of the lab is: which substrates, on which texts, for how long, disturbed how; checked at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, get_args

from rookery.errors import InputError
from rookery.lab.passages import PASSAGES
from rookery.sampling import Sampling

Tick: TypeAlias = Literal["token", "generation"]

NULLS = ("frozen", "iid", "ar1")
LANGUAGE = ("rwkv", "transformer")
NAMES = (*LANGUAGE, "physics", "nulls", *NULLS)
EVERYTHING = ("rwkv", "transformer", "physics", "nulls")
TICKS = {"token": 64, "generation": 10}  # unless asked otherwise: what the packaged texts are long enough for
GENERATION = 8  # tokens of a tick that is a generation


@dataclass(frozen=True, kw_only=True)
class Design:
    """Settings of a comparison. Raises InputError, with the nearest name of a substrate that is unknown.

    A tick is one token, or one generation: so many tokens read, or written, between two looks at the state.
    `passages` are (topic, text): the first `prompts` of them are read; a topic that all share, or none, means no probe.
    """

    substrates: tuple[str, ...] = EVERYTHING
    prompts: int = 30
    ticks: int = 0  # 0: TICKS
    seeds: int = 5
    tick: Tick = "token"
    passages: Sequence[tuple[str, str]] = field(default=PASSAGES, repr=False)
    prefix: int = 16  # tokens read before the first tick, the token that begins a text among them
    generation: int = GENERATION
    size: float = 0.1  # of a perturbation, relative to the L2 norm of the component that it is added to
    watched: int = 32  # ticks that are followed after a perturbation, at most
    coupling: str = "text->physics"  # how the physics hears the tokens
    sampling: Sampling = field(default_factory=Sampling)  # of free-running language models

    def __post_init__(self) -> None:
        object.__setattr__(self, "substrates", expanded(self.substrates))
        if self.tick not in get_args(Tick):
            raise InputError(f"tick {self.tick!r}: wanted {' or '.join(get_args(Tick))}")
        if not self.ticks:
            object.__setattr__(self, "ticks", TICKS[self.tick])
        least = {"prompts": 2, "ticks": 8, "seeds": 1, "prefix": 1, "generation": 1, "watched": 4}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise InputError(f"{name} {getattr(self, name)}: {number} or more are wanted")
        if self.prompts > len(self.passages):
            raise InputError(
                f"{self.prompts} prompts, but there are {len(self.passages)} texts; "
                "-f FILE takes your own, one a line, with a topic and a tab before each where it has one"
            )
        if not 0 < self.size < 10:
            raise InputError(f"size {self.size:g}: a perturbation relative to the component, above 0 and below 10")

    @property
    def tokens_per_tick(self) -> int:
        return self.generation if self.tick == "generation" else 1

    @property
    def struck(self) -> int:
        """The tick after which a perturbation is added: half of them are before it."""
        return self.ticks - self.after

    @property
    def after(self) -> int:
        """Ticks followed after a perturbation."""
        return min(self.watched, self.ticks // 2)

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _ in self.passages[: self.prompts]]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.passages[: self.prompts]]

    def record(self) -> dict[str, Any]:
        """Everything that a result depends on, as JSON."""
        whole = asdict(self) | {"substrates": list(self.substrates), "tokens_per_tick": self.tokens_per_tick}
        whole["passages"] = [list(passage) for passage in self.passages[: self.prompts]]
        whole["sampling"]["logit_bias"] = {str(t): b for t, b in self.sampling.logit_bias.items()}
        return whole


def expanded(names: Iterable[str]) -> tuple[str, ...]:
    """Substrates by name, `nulls` as the three that it stands for, each once; language models first, nulls last."""
    wanted: set[str] = set()
    for name in names:
        if name not in NAMES:
            near = get_close_matches(str(name).lower(), NAMES, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"no substrate {name!r}: choose from {', '.join(NAMES)}{hint}")
        wanted |= set(NULLS) if name == "nulls" else {name}
    if not wanted:
        raise InputError(f"no substrate: choose from {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in wanted)
