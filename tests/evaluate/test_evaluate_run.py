"""Runs: limits, batches, what is kept, and going on after a stop."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pytest

import rookery
from rookery import evaluate
from rookery.errors import CannotWrite, DamagedFile, InputError
from rookery.evaluate import Item, Likelihood, Local, run, statistics
from rookery.evaluate import settings as reading
from rookery.evaluate.settings import setting
from rookery.evaluate.text import cell, dumps, report


@dataclass(frozen=True)
class Settings:
    words: tuple[str, ...] = setting(("day", "night", "fox"), "words that are asked for")
    seed: int = setting(0, "of what is drawn")
    rate: float = setting(0.5, "a number")
    strict: bool = setting(False, "a truth")


class Words:
    name = "words"

    def __init__(self, settings: Settings, count: int = 10) -> None:
        self.settings, self.count = settings, count

    def items(self, coder) -> Iterator[Item]:
        for i in range(self.count):
            yield Item(tuple(Likelihood(f"{i} It was a", f" {w}") for w in self.settings.words), {"n": i})

    def row(self, item, answers):
        return {"logprobs": [a.logprob for a in answers]}

    def summary(self, rows):
        mean, error = statistics.mean([row["logprobs"][0] for row in rows])
        return {"mean": mean, "mean_stderr": error, "tables": [{"title": "t", "columns": ["a"], "rows": [[1]]}]}


@pytest.fixture(scope="module")
def scorer():
    return Local(rookery.load("gosling"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_batch_changes_no_byte(scorer, tmp_path):
    for batch in (1, 3, 32):
        run(scorer, [Words(Settings())], out=tmp_path / str(batch), batch=batch)
    assert contents(tmp_path / "1") == contents(tmp_path / "3") == contents(tmp_path / "32")
    assert set(contents(tmp_path / "1")) == {"manifest.json", "words.jsonl", "results.json"}


def test_a_run_without_a_folder_says_the_same(scorer, tmp_path):
    found = run(scorer, [Words(Settings())])
    assert found == run(scorer, [Words(Settings())], out=tmp_path / "kept")
    rows = [json.loads(line) for line in (tmp_path / "kept/words.jsonl").read_text().splitlines()]
    assert [row["item"] for row in rows] == [row["n"] for row in rows] == list(range(10))
    assert json.loads((tmp_path / "kept/results.json").read_text()) == found["results"]
    assert found["manifest"]["model"]["prefix"] == [0]


@pytest.mark.parametrize("torn", [b"", b'{"item": 4, "n"', b'{"item": 4}'])
def test_a_run_goes_on_behind_its_last_whole_row(scorer, tmp_path, torn):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(scorer, [Words(Settings())], out=whole)
    run(scorer, [Words(Settings())], limit=4, out=cut)
    with open(cut / "words.jsonl", "ab") as file:
        file.write(torn)
    asked = []

    def reader(items) -> Iterator[tuple[Item, list]]:
        for item in items:
            asked.append(item.about["n"])
            yield item, scorer.answer(list(item.requests))

    run(scorer, [Words(Settings())], out=cut, reader=reader)
    assert asked == [4, 5, 6, 7, 8, 9]
    assert contents(cut) == contents(whole)


def test_a_limit_takes_the_first_items_whatever_is_kept(scorer, tmp_path):
    run(scorer, [Words(Settings())], out=tmp_path)
    few = run(scorer, [Words(Settings())], limit=3, out=tmp_path)
    assert few["results"] == run(scorer, [Words(Settings())], limit=3)["results"]
    assert few["results"]["words"]["n"] == 3
    assert len((tmp_path / "words.jsonl").read_bytes().splitlines()) == 10


def test_another_run_in_the_folder_is_refused(scorer, tmp_path):
    run(scorer, [Words(Settings())], limit=2, out=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"tasks.words.settings.seed was 0, is 1"):
        run(scorer, [Words(Settings(seed=1))], out=tmp_path)
    with pytest.raises(InputError, match=r"model.prefix was \[0\], is \[\]"):
        run(Local(scorer.model, ()), [Words(Settings())], out=tmp_path)
    with pytest.raises(InputError, match="2 rows are kept, but its data has 1 items"):
        run(scorer, [Words(Settings(), 1)], out=tmp_path)
    assert contents(tmp_path) == before


def test_fewer_tasks_are_another_run(scorer, tmp_path):
    run(scorer, [Words(Settings()), evaluate.make("multihop")], limit=1, out=tmp_path)
    with pytest.raises(InputError, match=r"of another run \(tasks.multihop was .* is not there\)"):
        run(scorer, [Words(Settings())], limit=1, out=tmp_path)


def test_what_is_no_run_is_refused(scorer, tmp_path):
    run(scorer, [Words(Settings())], limit=2, out=tmp_path)
    (tmp_path / "words.jsonl").write_bytes(b'{"item": 7}\n')
    with pytest.raises(DamagedFile, match="line 1: is no row of this run"):
        run(scorer, [Words(Settings())], out=tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DamagedFile, match="no manifest"):
        run(scorer, [Words(Settings())], out=tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"words.jsonl but no manifest.json"):
        run(scorer, [Words(Settings())], out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot be made a folder"):
        run(scorer, [Words(Settings())], out=tmp_path / "file")


def test_two_runs_do_not_write_in_one_folder(scorer, tmp_path):
    def reader(items):
        with pytest.raises(InputError, match="another run is writing there"):
            run(scorer, [Words(Settings())], out=tmp_path)
        return iter(())

    with pytest.raises(InputError, match="holds no item"):
        run(scorer, [Words(Settings())], out=tmp_path, reader=reader)


@pytest.mark.parametrize(
    ("tasks", "settings", "said"),
    [
        ([], {}, "no task"),
        ([Words(Settings()), Words(Settings())], {}, "given twice"),
        ([Words(Settings())], {"limit": 0}, "limit 0"),
        ([Words(Settings())], {"batch": 0}, "batch 0"),
        ([Words(Settings(), 0)], {}, "holds no item"),
    ],
)
def test_runs_that_make_no_sense(scorer, tasks, settings, said):
    with pytest.raises(InputError, match=said):
        run(scorer, tasks, **settings)


def test_settings_are_read_from_texts_and_values():
    given = {"words": "a, b", "seed": "7", "rate": "1e-2", "strict": "yes"}
    assert reading.read(Settings, given) == Settings(("a", "b"), 7, 0.01, True)
    assert reading.read(Settings, {"words": ["a"], "seed": 7, "rate": 1, "strict": True}) == Settings(
        ("a",), 7, 1.0, True
    )
    assert [name for name, _, _ in reading.describe(Settings)] == ["words", "seed", "rate", "strict"]
    assert reading.read(Settings, {n: default for n, default, _ in reading.describe(Settings)}) == Settings()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sed": "1"}, "words has no setting 'sed'; did you mean seed"),
        ({"seed": "x"}, "words.seed='x': wanted a whole number"),
        ({"seed": "1.5"}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"rate": "nan"}, "a number"),
        ({"strict": "maybe"}, "true or false"),
        ({"words": "a,a"}, "each once"),
    ],
)
def test_settings_that_make_no_sense(given, said):
    with pytest.raises(InputError, match=said):
        reading.read(Settings, given, "words")


def test_unknown_tasks_are_told_the_nearest():
    with pytest.raises(InputError, match="did you mean lambada"):
        evaluate.make("lambda")
    with pytest.raises(InputError, match="choose from perplexity, lambada"):
        evaluate.make("zzz")


def test_json_is_json_and_tables_are_read_by_people(scorer):
    assert json.loads(dumps({"a": math.nan, "b": (1, 2.5)})) == {"a": None, "b": [1, 2.5]}
    said = report(run(scorer, [Words(Settings())], limit=2)["results"])
    assert said.startswith("words, 2 items\n  mean ")
    assert "±" in said
    assert list(islice(reversed(said.splitlines()), 2)) == ["    1", "    a"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.25, "0.2500"),
        (29119.62, "29,119.6"),
        (math.exp(300), "1.94e+130"),
        (4096, "4,096"),
        (math.nan, "-"),
        (None, "-"),
        (True, "True"),
        ("a", "a"),
    ],
)
def test_cells_are_short(value, said):
    assert cell(value) == said


def test_settings_of_a_task_that_is_not_asked_are_no_silent_mistake(scorer):
    with pytest.raises(InputError, match=r"settings of 'multhop', which is not among the tasks \(multihop\)"):
        evaluate.evaluate(scorer.model, "multihop", settings={"multhop": {"hops": 1}})


def test_lambada(shared, scorer):
    found = evaluate.evaluate(scorer.model, "lambada", shared / "data/eval", limit=8)["results"]["lambada"]
    assert found["n"] == 8
    lines = (shared / "data/eval/lambada_test.jsonl").read_text().splitlines()[:8]
    context, word = json.loads(lines[0])["text"].rsplit(" ", 1)
    first = scorer.answer([Likelihood(context, " " + word)])[0]
    rows = run(scorer, [evaluate.make("lambada", {}, shared / "data/eval")], limit=1)
    assert rows["results"]["lambada"]["perplexity"] == pytest.approx(math.exp(-first.logprob))
    assert 0 <= found["acc"] <= 1
