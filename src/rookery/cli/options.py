"""Flags that mean the same in every command, each stated once. Imports nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from rookery.errors import InputError

# name: (type, default, metavar, what); the defaults are those of rookery.Sampling, and a test holds them together
SAMPLING: dict[str, tuple[type, object, str, str]] = {
    "temperature": (
        float,
        1.0,
        "T",
        "odds among the tokens left after the cuts are raised to 1/T; 0 takes the likeliest",
    ),
    "top_p": (float, 0.85, "P", "keep the likeliest tokens that together reach P; 1 keeps all"),
    "top_k": (int, 0, "K", "keep at most K tokens; 0 keeps all"),
    "min_p": (float, 0.0, "P", "keep tokens at least P times as likely as the likeliest"),
    "typical_p": (float, 1.0, "P", "keep the tokens of most typical surprise that together reach P; 1 keeps all"),
    "presence": (float, 0.0, "X", "what a token that was generated before loses"),
    "frequency": (float, 0.0, "X", "what it loses more for every time"),
    "penalty": (str, "rwkv", "RULE", "how these two add up and fade: rwkv, rapid or openai"),
    "decay": (float, 0.996, "X", "how they fade with each token (rwkv: the counts, rapid: all, openai: nothing)"),
}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """`-n, --max-tokens N` in every Python version, so that docs/help.md does not depend on it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        return ", ".join(action.option_strings) + value


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is an InputError. `mixed`: arguments may stand between and behind options."""

    mixed = False

    def __init__(self, prog: str, usage: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog,
            f"{prog} {usage}",
            description,
            epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="show this page")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return (self.parse_intermixed_args if self.mixed else super().parse_args)(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def whole(least: int) -> Any:
    """An argparse type: a whole number of at least `least`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return value

    return number


def numbers(least: int) -> Any:
    """An argparse type: whole numbers of at least `least`, with commas between them; each counts once."""
    one = whole(least)

    def listed(text: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(one(part) for part in text.split(",")))

    return listed


def add_general(parser: Parser, json: str = "") -> None:
    """--debug, and --json where a command has it."""
    if json:
        parser.add_argument("--json", action="store_true", help=json)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: Parser, threads: Any = None, state: bool = False, ids: bool = False) -> None:
    """What to run and how: the arguments of rookery.load. `threads`: the type of -t where it is not one number.
    `state`: and --state. `ids`: adapters and states may be given model ids of their own.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        default="gosling",
        metavar="FILE",
        help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, a Hugging Face folder, or ORG/NAME (default: gosling)",
    )
    group.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="bytes, utf16le, world, a vocabulary or a tokenizer.json (default: the model's own)",
    )
    group.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="native, reference, torch, or auto: native where it is built and the dtype allows, else reference",
    )
    group.add_argument(
        "--dtype",
        metavar="TYPE",
        help="what is computed in: float32, or float64 (not native); native's default follows the stored types",
    )
    group.add_argument("--device", metavar="NAME", help="where torch computes: cpu or cuda (default: cpu)")
    group.add_argument(
        "-t",
        "--threads",
        type=threads or whole(1),
        metavar="N",
        help="of native (default: one a physical core, at most 16) or torch",
    )
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FILE" if ids else "FILE",
        help="run beside the model what was tuned on it: a file of Rookery, a .pth of RWKV-PEFT or a folder of peft; "
        + ("with a NAME as a model of that id; " if ids else "")
        + "several add up",
    )
    group.add_argument(
        "--alpha", type=float, metavar="X", help="of a LoRA in a .pth of RWKV-PEFT, which does not hold it"
    )
    group.add_argument("--init", metavar="FILE", help="of a PiSSA of RWKV-PEFT: what it began as, its init_pissa.pth")
    if state:
        group.add_argument(
            "--state",
            action="append" if ids else "store",
            default=[] if ids else None,
            metavar="[NAME=]FILE" if ids else "FILE",
            help="begin with this state of the model, tuned or saved, in whichever of its quantisations"
            + ("; with a NAME as a model of that id" if ids else ""),
        )


def add_limits(parser: Parser) -> None:
    """What the text must follow, and where it ends."""
    group = parser.add_argument_group("form of the text")
    group.add_argument(
        "--schema", metavar="FILE|JSON", help="write JSON that this JSON schema allows, compact; a { begins a schema"
    )
    group.add_argument("--regex", metavar="RE", help="write a text that this regular expression matches as a whole")
    group.add_argument("--grammar", metavar="FILE", help="write a text of this grammar, in Lark or in llama.cpp's GBNF")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text, which is not printed; may be given again for more",
    )


def add_sampling(parser: Parser, profile: bool = False) -> None:
    """How tokens are chosen, in the order in which the settings act (see rookery.sampling). `profile`: what is not
    given is None, for a profile to say.
    """
    group = parser.add_argument_group("sampling (default: the profile's)" if profile else "sampling")
    for name, (kind, default, metavar, what) in SAMPLING.items():
        flag, said = f"--{name.replace('_', '-')}", what if profile else f"{what} (default: {default})"
        group.add_argument(flag, type=kind, default=None if profile else default, metavar=metavar, help=said)
    again = "the same talk again" if profile else "the same text again, whatever the machine"
    group.add_argument("--seed", type=whole(0), metavar="N", help=f"{again} (default: drawn anew)")


def sampling(args: argparse.Namespace) -> Any:
    """The rookery.Sampling that the flags describe. Raises InputError."""
    from rookery.sampling import Sampling

    return Sampling(**{name: getattr(args, name) for name in SAMPLING})


def load_model(args: argparse.Namespace, others: Iterable[Any] = ()) -> Any:
    """The rookery.Model that the flags of `add_model` describe. What has to fit it, `others` of its adapters too, is
    refused before anything is made of its weights.
    """
    import rookery
    from rookery import weights

    given = adapters(args, args.adapter)
    of = weights.load(args.model)
    for each in others:
        each.check(of)
    return rookery.load(
        of,
        adapter=given,
        backend=args.backend,
        threads=args.threads,
        device=args.device,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
    )


def adapters(args: argparse.Namespace, files: Iterable[str]) -> list[Any]:
    """The adapters in these files."""
    if not files:
        return []
    from rookery.weights import adapters

    return [adapters.load(file, args.alpha, args.init) for file in files]


def load_with_state(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and the State of --state; None where none is given. Raises StateError for another model's."""
    if args.state is None:
        return load_model(args), None
    from rookery import formats
    from rookery.state import State

    formats.read(args.state)  # what is no file at all is refused before the model is read
    model = load_model(args)
    return model, State.load(args.state, model, allow_lineage=True)


def model_name(args: argparse.Namespace) -> str:
    """What to call the model that the flags describe."""
    return " + ".join(map(_called, (args.model, *args.adapter)))


def _called(path: str) -> str:
    """A file's name; of OUT/adapter.safetensors, as `rookery tune` writes it, OUT."""
    name = os.path.splitext(os.path.basename(path.rstrip("/")))[0]
    return os.path.basename(os.path.dirname(os.path.abspath(path))) if name == "adapter" else name
