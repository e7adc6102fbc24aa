"""Random programs of calls on a talk, against a plain list of what was said in each branch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from talks import SAMPLINGS, gosling, tiny

import rookery
from rookery import Session, errors
from rookery.store.memory import Memory

HOT = rookery.Sampling(temperature=1.4, top_p=1, presence=0.3, frequency=0.2)
TEXTS = (
    "Hello.", "", "  \n ", "Who are you?\n\nAssistant: nobody", "a\n\nUser: b", "好。", "🙂é", "x" * 300, " lead",
    "trail \n", "<think>", "</think>", "```",
)  # fmt: skip
JINJA = (
    "{% for m in messages if m.role == 'system' %}<s>{{ m.content | trim }}</s>{% endfor %}"  # hoists
    "{% for m in messages if m.role != 'system' %}<{{ m.role[0] }}>"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}"
    "<end>\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
TEMPLATES: dict[str, dict[str, Any]] = {
    "world": {},
    "raven": {"system": "Bob and Alice talk."},
    "plain": {},
    "g1": {"system": "Be kind.", "think": ("off", "fake", "on", "short", "long", None)},
    "g1-tools": {"tools": ["f(x)"], "think": ("off", None)},
    "coder": {"think": ("off", "fake", None)},
    JINJA: {"system": " Be kind. "},
}


class Walk:
    """One talk, its branches, and what we think that each of them says: [(what was said, reply)]."""

    def __init__(self, model: Any, template: str, seed: int, tmp_path: Path, sqlite: bool) -> None:
        options = dict(TEMPLATES[template])
        self.thinks = options.pop("think", (None,))
        self.dice, self.model, self.tmp_path = random.Random(seed), model, tmp_path
        self.store: Any = rookery.store.open(tmp_path / "talks.db") if sqlite else Memory()
        template = template.removesuffix("-tools")
        talk = Session(model, template, HOT, self.store, seed=seed, name="talk", **options)
        self.all: list[tuple[Session, list[tuple[str, str]]]] = [(talk, [])]
        self.known: dict[str, tuple[list[tuple[str, str]], Any]] = {}  # by turn: the talk up to it, the sampler

    def run(self, steps: int) -> None:
        calls = [self.say] * 5 + [
            self.proceed,
            self.half,
            self.rewind,
            self.goto,
            self.branch,
            self.reopen,
            self.forget,
        ]
        for _ in range(steps):
            at = self.dice.randrange(len(self.all))
            call: Callable[[int], None] = self.dice.choice(calls)
            call(at)
            self.check(at)
        for at in range(len(self.all)):
            self.check(at)

    def say(self, at: int) -> None:
        talk, said = self.all[at]
        talk.think = self.dice.choice(self.thinks)
        talk.sampling = self.dice.choice([HOT, HOT, *SAMPLINGS.values()])
        text, size = self.dice.choice(TEXTS), self.dice.choice([0, 1, 2, 5, 17, 40])
        role = "tool" if "tools" in talk.settings and talk.settings["tools"] and self.dice.random() < 0.3 else "user"
        reply = talk.say(text, max_tokens=size, role=role)
        try:
            pieces = "".join(reply)
        except errors.InputError as error:
            assert "nothing was said" in str(error)  # noqa: PT017
            return
        if self.thinks == (None,):
            assert pieces == reply.text
        self.asked(talk, text, role)
        said.append((text, reply.text))
        assert len(reply.tokens) <= size

    def asked(self, talk: Session, text: str, role: str) -> None:
        """What the model read is what the template writes, but for blanks around what was written before."""
        *before, last, _ = talk._messages(talk.at)
        node = talk._tree.nodes[str(talk.at)]
        whole = talk.template.render([*before, last], think=talk.think, tools=talk.settings["tools"])
        reply = len(talk.tokens) - (len(node.tokens) - json.loads(node.sampling)["asked"])
        read = self.model.tokenizer.decode(talk.tokens[:reply])
        assert "".join(read.split()) == "".join(whole.split())

    def half(self, at: int) -> None:
        """A reply that is cancelled after some pieces, or that the next call cancels."""
        talk, said = self.all[at]
        reply = talk.say("half", max_tokens=30)
        for _ in range(self.dice.randrange(4)):
            next(reply, None)
        if self.dice.random() < 0.5 or not reply._begun:
            reply.cancel()
        if len(talk.turns) > len(said):
            said.append(("half", reply.text))

    def proceed(self, at: int) -> None:
        talk, said = self.all[at]
        try:
            reply = talk.proceed(self.dice.choice([0, 1, 7]))
        except errors.InputError:
            assert not said or talk.turns[-1].stop_reason in ("end", "stop")
            return
        said[-1] = (said[-1][0], reply.text)

    def rewind(self, at: int) -> None:
        talk, said = self.all[at]
        n = self.dice.randint(0, len(said))
        talk.rewind(n)
        del said[len(said) - n :]

    def goto(self, at: int) -> None:
        talk, said = self.all[at]
        if self.known:
            id = self.dice.choice(sorted(self.known))
            talk.goto(id[: self.dice.choice([12, 32])])
            said[:] = self.known[id][0]

    def branch(self, at: int) -> None:
        talk, said = self.all[at]
        if len(self.all) < 5:
            self.all.append((talk.branch(), list(said)))

    def reopen(self, at: int) -> None:
        """Another process, or another file."""
        talk, said = self.all[at]
        if self.dice.random() < 0.5 or not talk._head.created:
            talk.save(self.tmp_path / "talk")
            new = Session.load(self.tmp_path / "talk", self.model)
            assert [(t.user, t.reply) for t in new.turns] == said
            assert new.tokens == talk.tokens
            assert new.state.vector().tobytes() == talk.state.vector().tobytes()
            assert new._sampler_state(new.at) == talk._sampler_state(talk.at)
            assert [row[:3] for row in new.tree()] == [row[:3] for row in talk.tree()] or len(self.all) > 1
        else:
            self.all[at] = Session.resume(self.store, "talk", self.model, head=talk.head), said

    def forget(self, at: int) -> None:
        """Every state is gone."""
        talk = self.all[at][0]
        talk._tree._live.clear()
        for node in talk._tree.nodes.values():
            self.store._drop(node.key)

    def check(self, at: int) -> None:
        talk, said = self.all[at]
        assert [(t.user, t.reply) for t in talk.turns] == said
        if talk._head.created:
            assert self.store.heads("talk")[talk.head] == talk.at
            assert self.known.keys() <= self.store.nodes("talk").keys()
        if talk.at is not None:
            assert talk.state.vector().tobytes() == self.model.forward(talk.tokens)[1].vector().tobytes()
            sampler = talk._sampler_state(talk.at)
            assert self.known.setdefault(talk.at, (list(said), sampler)) == (said, sampler)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda text: text[:8])
@pytest.mark.parametrize("seed", range(4))
def test_random_programs(template: str, seed: int, tmp_path: Path) -> None:
    if template == JINJA:
        pytest.importorskip("jinja2")
    version = ("v7", "v4", "v6", "v5.2")[seed]
    model = gosling() if seed == 3 else tiny(version)
    Walk(model, template, seed, tmp_path, sqlite=seed == 1).run(25)
