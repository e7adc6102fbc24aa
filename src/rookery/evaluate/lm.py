"""A model class for lm-eval, EleutherAI's harness.

>>> from rookery.evaluate import LM
>>> lm_eval.simple_evaluate(model=LM("gosling"), tasks=["lambada_openai"])

lm-eval knows no plugins: its command finds the model "rookery" when it is begun from here, where everything behind the
module's name is its own:

    python -m rookery.evaluate.lm run --model rookery --model_args pretrained=FILE --tasks lambada_openai

Texts are read as everywhere in this room (requests.py): after a prefix, context and continuation each encoded by
itself. lm-eval's own classes encode the two as one text and cut the ids behind as many as the context alone has. Where
a token of a vocabulary lies across the two, that scores other ids than those of the continuation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from rookery import __version__, chat
from rookery.chat.jinja import Jinja
from rookery.errors import InputError, MissingExtra, RookeryError
from rookery.evaluate.local import Local
from rookery.evaluate.remote import Remote
from rookery.evaluate.requests import Answer, Continue, Likelihood, Likely, Passage, Read, Request, Scorer, ids
from rookery.model import Adapters, Model, load

try:
    from lm_eval.api.model import LM as Base
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from tqdm import tqdm
except ImportError:
    raise MissingExtra("rookery.evaluate.LM", "eval") from None

TOGETHER = 256  # requests that are asked at once where lm-eval leaves it open
LONGEST = 256  # tokens of a reply where a task does not say
DRAWN = ("temperature", "top_p", "top_k", "min_p", "typical_p")  # what a task may say of drawing tokens
GREEDY = {"do_sample", "until", "max_gen_toks", *DRAWN}


@register_model("rookery")
class LM(Base):  # type: ignore[misc]
    """`model` or `pretrained`: a Model, what `rookery.load` opens, the address of a server, or a Scorer.

    `prefix`: a token id or several that are read before every text, "none" for none; default: the token that ends a
    text. `template`: of talks, what `rookery.chat.load` takes; default: the model's own. `variant`, `key`: of a server,
    the id of its model and the key it asks for, which is better said in ROOKERY_API_KEY: lm-eval writes all arguments
    into its results. `batch_size`: requests that are asked together, which changes no figure; 1, lm-eval's own default,
    and "auto" leave it to this class. `device` counts with backend="torch" alone: lm-eval's command names a GPU
    wherever it is not told otherwise. The others are those of `rookery.load`.
    """

    def __init__(
        self,
        model: Model | Scorer | str | None = None,
        *,
        pretrained: str | None = None,
        prefix: int | str | Sequence[int] | None = None,
        template: str | None = None,
        variant: str | None = None,
        key: str | None = None,
        max_gen_toks: int = LONGEST,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        backend: str = "auto",
        threads: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        tokenizer: str | None = None,
        adapter: Adapters = None,
    ) -> None:
        super().__init__()
        given = model if model is not None else pretrained
        if given is None:
            raise InputError("no model: give one, such as pretrained=gosling or pretrained=http://127.0.0.1:8000")
        before = _prefix(prefix)
        if isinstance(given, str):
            if given.startswith(("http://", "https://")):
                given = Remote(given, variant, key, before)
            else:
                place = device if backend == "torch" else None
                given = load(given, backend, threads, place, dtype, tokenizer, adapter=adapter)
        self.scorer: Scorer = Local(given, before) if isinstance(given, Model) else given
        self._together = TOGETHER if str(batch_size).startswith("auto") or int(batch_size) < 2 else int(batch_size)
        self._longest = max_gen_toks
        self._template = None if template is None else chat.load(template)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, whether each token was the likeliest) of each (context, continuation)."""

        def result(answer: Answer) -> tuple[float, bool]:
            likely = cast(Likely, answer)
            return likely.logprob, likely.greedy

        asked = [Likelihood(*request.args) for request in requests]
        return self._answers("loglikelihood", requests, asked, result, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text, read once with the state carried, however long it is. Without a prefix its first
        token is not counted.
        """

        def result(answer: Answer) -> float:
            return float(np.nansum(cast(Read, answer).logprobs))

        asked = [Passage(*request.args) for request in requests]
        return self._answers("loglikelihood_rolling", requests, asked, result, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context. Where a task asks for drawn tokens, top_p cuts before the temperature (see
        rookery.sampling), and the seeds come from NumPy's generator, which lm-eval seeds.
        """
        settings = [normalize_gen_kwargs(request.args[1], self._longest) for request in requests]
        texts: dict[int, str] = {}
        greedy = [n for n, each in enumerate(settings) if not each["do_sample"]]
        asked = [Continue(requests[n].args[0], *_limits(settings[n])) for n in greedy]
        of_greedy = [requests[n] for n in greedy]
        texts |= zip(greedy, self._answers("generate_until", of_greedy, asked, str, disable_tqdm), strict=True)
        drawn = [n for n, each in enumerate(settings) if each["do_sample"]]
        for n in tqdm(drawn, desc="drawing texts", disable=disable_tqdm or not drawn):
            texts[n] = self._drawn(requests[n].args[0], settings[n])
        return [texts[n] for n in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The talk as the model reads it."""
        if self._template is None and isinstance(self.scorer, Remote):
            return self.scorer.render(chat_history, add_generation_prompt)
        return self._talk().render(cast(list[chat.Message], chat_history), add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source or name. A text chooses it, as `lm_eval --apply_chat_template NAME` does."""
        if isinstance(chat_template, str):
            self._template = chat.load(chat_template)
        if not chat_template:
            return None
        if self._template is None and isinstance(self.scorer, Remote):
            return f"that of {self.scorer.model}"
        template = self._talk()
        return template.source if isinstance(template, Jinja) else template.name

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests, which depend on the template."""
        return f"{self.scorer.about.get('tokenizer')}__{self.chat_template(True)}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results."""
        about = self.scorer.about
        known = {"model_num_parameters": about.get("parameters"), "model_dtype": about.get("dtype")}
        return known | {"model_sha": about.get("fingerprint"), "rookery": {"version": __version__, **about}}

    def _answers(
        self,
        kind: str,
        requests: Sequence[Any],
        asked: Sequence[Request],
        result: Callable[[Any], Any],
        silent: bool,
    ) -> list[Any]:
        """In the order of `requests`; lm-eval's cache hears of each batch."""
        found: list[Any] = []
        with tqdm(total=len(asked), desc=kind, disable=silent or not asked) as bar:
            for at in range(0, len(asked), self._together):
                for answer in self.scorer.answer(list(asked[at : at + self._together])):
                    self.cache_hook.add_partial(kind, requests[len(found)].args, result(answer))
                    found.append(result(answer))
                bar.update(len(found) - at)
        return found

    def _drawn(self, context: str, settings: dict[str, Any]) -> str:
        if unknown := sorted(settings.keys() - GREEDY):
            raise InputError(f"{', '.join(unknown)}: not a setting of drawing here; choose from {', '.join(DRAWN)}")
        most, stop = _limits(settings)
        drawing = {"top_p": 1.0} | {name: settings[name] for name in DRAWN if name in settings}
        prompt = [*self.scorer.prefix, *ids(self.scorer.coder, context)]
        seed = int(np.random.randint(1 << 31))
        if isinstance(self.scorer, Remote):
            return self.scorer.write(prompt, most, stop=list(stop), seed=seed, **drawing)
        if isinstance(self.scorer, Local):
            return self.scorer.model.generate(prompt, most, stop=stop, seed=seed, **drawing)
        raise InputError(f"{type(self.scorer).__name__} draws no tokens; set do_sample to false")

    def _talk(self) -> chat.Template:
        if self._template is None:
            of = self.scorer.model.weights if isinstance(self.scorer, Local) else None
            folder = of.path if of is not None and of.format == "hf" else None
            self._template = chat.load(None, of.metadata if of is not None else {}, folder)
        return self._template


def _prefix(given: int | str | Iterable[int] | None) -> list[int] | None:
    if given is None or isinstance(given, int):
        return None if given is None else [given]
    if isinstance(given, str):
        if given.lower() != "none":
            raise InputError(f'prefix {given[:40]!r}: wanted a token id, a list of them, or "none"')
        return []
    return list(given)


def _limits(settings: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Tokens at most, and texts that end a reply."""
    return int(settings["max_gen_toks"]), tuple(stop for stop in settings["until"] if stop)


def main() -> None:
    """lm-eval's command."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except RookeryError as error:
        print(f"rookery: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
