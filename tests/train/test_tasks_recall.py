"""The texts of examples/recall: every answer is right, in its place, and as an evaluation would ask for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rookery.evaluate.tasks.multihop import replay

RECALL = str(Path(__file__).resolve().parents[2] / "examples" / "recall")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECALL)
    import texts

    return texts


def told(texts: Any, kind: str, seed: int) -> tuple[str, list[tuple[str, str]]]:
    """What the first question is about, and all (question with what leads to its answer, answer)."""
    parts = texts.made(texts.generator(seed), kind, 5)[-1]
    context, first = parts[0][0].rsplit("\n", 1)
    return context, [(first, parts[0][1].strip()), *((read.strip(), written.strip()) for read, written in parts[1:])]


@pytest.mark.parametrize("kind", ["passkey", "single", "multikey", "multivalue", "multiquery"])
def test_every_needle_asked_for_is_answered_by_its_value(texts: Any, kind: str) -> None:
    for seed in range(30):
        context, asked = told(texts, kind, seed)
        for question, answer in asked:
            name = re.search(r"secret numbers? of (.+?)\?", question)
            keys = re.split(", | and ", name[1]) if name else ["The pass key"]
            found = [n for key in keys for n in re.findall(rf"{key} is (\d+)\.", context)]
            assert answer == ", ".join(found)
        assert len(asked) == (4 if kind == "multikey" else 1)
        assert len(set(asked)) == len(asked)


def test_everything_in_a_story_is_asked_for_and_answered_by_a_replay(texts: Any) -> None:
    for seed in range(30):
        context, asked = told(texts, "multihop", seed)
        things = re.findall(r"has a \w+ (\w+)\.", context)
        assert len(set(asked)) == len(asked) == 2 * len(things)
        for question, answer in asked:
            assert answer == replay(f"{context} {question[: question.index('?') + 1]}")


def test_a_story_asked_about_while_it_is_told_is_answered_by_a_replay_of_what_was_told(texts: Any) -> None:
    asked = 0
    for seed in range(30):
        said = ""
        for read, written in texts.running(texts.generator(seed), 4, 3, 2, 0.5):
            if "?" in read:
                assert written.strip() == replay(f"{said} {read[: read.index('?') + 1].strip()}")
                asked += 1
            else:
                said += read + written  # that whoever gives something has it, `replay` sees to
    assert asked > 30 * 6


def test_rows_of_stories_are_full_and_targets_are_what_comes_next(texts: Any) -> None:
    source = texts.Stories()
    for step in range(8):
        tokens, targets = source.batch(texts.generator(1, step), 1024)
        assert 700 < tokens.size < 1300  # the last row may be a longer one
        wanted = targets[:, :-1] >= 0
        assert (targets[:, :-1][wanted] == tokens[:, 1:][wanted]).all()
        assert (wanted.sum(1) > 3).all()


def test_rows_fit_and_targets_are_what_comes_next(texts: Any) -> None:
    source = texts.Texts()
    kinds = set()
    for step in range(8):
        tokens, targets = source.batch(texts.generator(1, step), 1024)
        assert 512 < tokens.size <= 1024
        wanted = targets[:, :-1] >= 0
        assert (targets[:, :-1][wanted] == tokens[:, 1:][wanted]).all()
        assert (wanted.sum(1) > 0).all()
        bare = bool(tokens[0, 0])  # a text begins with the end of text before it
        assert tokens.shape[1] in ([4 * n for n in texts.PAIRS] if bare else texts.LENGTHS)
        kinds.add(bare)
        same, _ = source.batch(texts.generator(1, step), 1024)
        assert (same == tokens).all()
    assert kinds == {True, False}


def test_the_vocabulary_has_the_words_of_the_texts_as_single_tokens(texts: Any) -> None:
    source = texts.Texts()
    said = "Mary has a purple mirror. The secret number of steep-cottage is 4704827."
    cut = [source.tokenizer.token_bytes(id) for id in source.tokenizer.encode(said)]
    words = "Mary| has| a| purple| mirror|.| The| secret| number| of| steep|-|cottage| is| 47|04|82|7|."
    assert cut == words.encode().split(b"|")
