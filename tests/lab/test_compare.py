"""An experiment: its design, its resuming, and numbers that are known beforehand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import TEXTS, design, models, tiny

from rookery.errors import CannotWrite, DamagedFile, InputError, MissingExtra, MissingFile
from rookery.lab import compare as room
from rookery.lab import ledger, metrics, strike, summary
from rookery.lab.compare import compare
from rookery.lab.design import TICKS, Design, expanded
from rookery.lab.drive import begin, forced, free
from rookery.lab.hosts import Models, hosts
from rookery.lab.motion import WHOLE, motion
from rookery.lab.passages import PASSAGES
from rookery.lab.substrates.rwkv import RWKV
from rookery.lab.unit import measure
from rookery.sampling import Sampling

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """Intervals are not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "DRAWS", 20)
        patch.setattr(summary, "SHUFFLES", 40)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A whole small experiment."""
    folder = tmp_path_factory.mktemp("lab") / "out"
    return folder, compare(design("rwkv", "physics", "nulls", prompts=6), folder, models())


def find(rows: list[Any], *wanted: str) -> Any:
    """The row of (substrate, condition, component, metric)."""
    (row,) = [r for r in rows if (r.substrate, r.condition, r.component, r.metric) == wanted]
    return row


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


# design


def test_names_are_expanded_in_one_order() -> None:
    assert expanded(["nulls", "physics", "rwkv"]) == ("rwkv", "physics", "frozen", "iid", "ar1")
    assert expanded(["iid", "nulls", "iid"]) == ("frozen", "iid", "ar1")


def test_mistakes_of_a_design() -> None:
    with pytest.raises(InputError, match=r"no substrate 'transfomer'.*did you mean transformer\?"):
        design("transfomer")
    with pytest.raises(InputError, match="tick 'week': wanted token or generation"):
        design("rwkv", tick="week")
    with pytest.raises(InputError, match="9 prompts, but there are 8 texts"):
        design("rwkv", prompts=9)
    with pytest.raises(InputError, match="ticks 3: 8 or more"):
        design("rwkv", ticks=3)
    with pytest.raises(InputError, match="size 0: a perturbation"):
        design("rwkv", size=0.0)
    with pytest.raises(InputError, match=r"text 1 has only \d+ tokens for rwkv; ask for at most \d+ ticks"):
        hosts(design("rwkv", ticks=99), models())


def test_the_packaged_texts_suffice_for_the_defaults() -> None:
    import rookery

    encode = rookery.load("gosling").tokenizer.encode
    assert len(PASSAGES) == 30
    assert len({text for _, text in PASSAGES}) == 30
    whole = Design()
    for tick, ticks in TICKS.items():
        one = Design(tick=tick)  # type: ignore[arg-type]
        assert one.ticks == ticks
        assert min(len(encode(text)) for _, text in PASSAGES) >= one.prefix - 1 + ticks * one.tokens_per_tick
    assert [whole.topics.count(topic) for topic in ("sea", "kitchen", "forest")] == [10, 10, 10]
    assert whole.struck + whole.after == whole.ticks


# driving


def test_forced_losses_and_states_are_the_models_own() -> None:
    model = tiny(backend="reference")
    tokens = list(b"the ant and the bear")
    substrate = RWKV(model, prefix=())
    begin(substrate, tokens[:4], 0)
    path = forced(substrate, tokens[4:], 1, struck=10)
    logits, state = model.forward(tokens, every=True)
    wanted = -metrics.log_softmax(logits)[np.arange(3, len(tokens) - 1), tokens[4:]]
    np.testing.assert_allclose(path.losses, wanted, rtol=1e-12)
    assert len(path.states["layers.0.wkv"]) == len(tokens) - 4 + 1
    assert (path.states["layers.1.wkv"][-1] == state.layer(1).wkv).all()
    assert len(path.logits) == len(tokens) - 4 - 10 + 1
    substrate.restore(path.snapshot)
    assert (substrate.components()["layers.0.wkv"] == path.states["layers.0.wkv"][10]).all()


def test_a_tick_of_several_tokens_is_every_fourth_state() -> None:
    tokens = list(b"the ant and the bear")
    each, fourth = RWKV(tiny(), prefix=()), RWKV(tiny(), prefix=())
    one, four = forced(each, tokens, 1, 10), forced(fourth, tokens, 4, 2)
    for name, rows in four.states.items():
        assert (rows == one.states[name][::4]).all()
    begin(each, tokens, 3)
    begin(fourth, tokens, 3)
    assert (free(each, 8, 1).states["layers.1.wkv"][::4] == free(fourth, 2, 4).states["layers.1.wkv"]).all()


def test_motion_equals_the_metrics_on_the_plain_trajectory() -> None:
    rng = np.random.default_rng(1)
    states = {"a": rng.standard_normal((300, 5)).cumsum(0) * 0.1, "b": rng.standard_normal((300, 2, 4))}
    found = motion(states)
    whole = np.concatenate([rows.reshape(300, -1) for rows in states.values()], axis=1)
    for name, rows in {"b": states["b"].reshape(300, -1), WHOLE: whole}.items():
        assert found[name]["memory"] == pytest.approx(
            _quietly(lambda r=rows: metrics.autocorrelation_time(r[1:]).ticks), rel=1e-5
        )
        assert found[name]["dimension"] == pytest.approx(metrics.participation_ratio(rows[1:]), rel=1e-5)
        assert found[name]["delta"][7] == pytest.approx(metrics.state_delta(rows[7], rows[8]), rel=1e-5)
    assert found["b"]["few"] == []
    assert "memory" in found["a"]["few"]  # a random walk: no number of ticks would do
    states["b"][3, 0, 0] = np.nan
    found = motion(states)
    assert found["b"]["nonfinite"] == 1
    assert math.isnan(found["b"]["memory"])
    assert found["a"]["nonfinite"] == 0


def _quietly(measure: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure()


def test_free_running_goes_on_from_the_beginning_of_the_text() -> None:
    plan = design("rwkv", sampling=Sampling(temperature=1.5, top_p=1.0))
    (host,) = hosts(plan, models())
    found = measure(host, 2, 1, plan)["free"]
    alone = RWKV(tiny(backend="reference"), plan.sampling, ())
    begin(alone, list(TEXTS[2][1].encode())[: plan.prefix], 2 * plan.seeds + 1)
    assert found == motion(free(alone, plan.ticks, 1).states)


@pytest.mark.parametrize("name", ["v4", "v5.0", "v5.2", "v6", "v7"])
def test_every_version_is_measured(name: str) -> None:
    plan = design("rwkv")
    (host,) = hosts(plan, Models(rwkv=tiny(name, backend="reference")))
    first, later = measure(host, 0, 0, plan), measure(host, 0, 1, plan)
    layers = {f"layers.{i}.wkv" for i in range(host.about["layers"])}
    assert set(first["forgetting"]) == layers
    assert ("writes" in first["forgetting"]["layers.0.wkv"]) == (name == "v7")
    if name != "v7":
        assert first["forgetting"]["layers.0.wkv"]["exponent"] <= 0
    assert set(first["ranks"]) == (set() if name == "v4" else layers)
    assert "teacher" not in later  # the same for every seed
    assert later["push"] != first["push"]
    assert later["free"] != first["free"]
    assert first["push"]["layers.1.wkv"]["curve"][0] == pytest.approx(plan.size, rel=1e-5)
    assert set(first["floor"]) == {"chunked", "elsewhere"}
    assert max(first["floor"]["chunked"].values()) == 0  # the law of rows
    assert 0 <= max(first["floor"]["elsewhere"].values()) < 1e-4


# whole experiments


def test_the_files_of_an_experiment(done: tuple[Path, list[Any]]) -> None:
    folder, rows = done
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "metrics.csv", "report.html", "results.jsonl"]
    found = table(folder)
    assert len(found) == len(rows)
    assert {r["substrate"] for r in found} == {"rwkv", "physics", "frozen", "iid", "ar1"}
    assert all(r["unit"] for r in found)
    assert all(r["note"] for r in found if r["estimate"] == "-")
    manifest = json.loads((folder / "manifest.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    about = manifest["substrates"]["rwkv"]
    assert about["fingerprint"] == models().rwkv.weights.fingerprint  # type: ignore[union-attr]
    assert {"arithmetic", "types", "tokenizer", "begins_with", "format"} <= set(about)
    assert manifest["design"]["sampling"]["temperature"] == 1.0
    assert manifest["design"]["passages"] == [list(passage) for passage in TEXTS[:6]]
    assert {"python", "rookery", "numpy"} <= set(manifest["versions"])
    assert set(manifest["times"]["seconds_of_measuring"]) == {"rwkv", "physics", "frozen", "iid", "ar1"}
    assert manifest["results"] == 5 * 6 * 2


def test_what_cannot_be_is_no_zero(done: tuple[Path, list[Any]]) -> None:
    _, rows = done
    for wanted, why in {
        ("physics", "teacher", WHOLE, "kl"): "no next token",
        ("physics", "teacher", WHOLE, "loss"): "no language model",
        ("frozen", "teacher", WHOLE, "memory"): "never moves",
        ("frozen", "teacher", WHOLE, "recovery"): "no return",
        ("iid", "free", WHOLE, "rel_delta"): "reads no tokens",
        ("iid", "teacher", WHOLE, "probe"): "read the matching",
        ("ar1", "teacher", WHOLE, "exponent"): "known beforehand",
        ("rwkv", "teacher", "layers.0.att_shift", "exponent"): "overwritten at every token",
    }.items():
        row = find(rows, *wanted)
        assert row.estimate is None
        assert why in row.note


def test_known_numbers_of_the_nulls(done: tuple[Path, list[Any]]) -> None:
    _, rows = done
    assert find(rows, "frozen", "teacher", WHOLE, "rel_delta").estimate == 0
    assert find(rows, "frozen", "teacher", WHOLE, "coherence").estimate == 1
    assert find(rows, "iid", "teacher", WHOLE, "kept").estimate == 0
    assert find(rows, "frozen", "teacher", WHOLE, "kept").estimate == 1


def test_noise_alone_has_the_half_life_of_its_autocorrelation(tmp_path: Path) -> None:
    """AR(1) with rho = 0.9 forgets a push by 0.9 a tick, but for its own norm, which wanders."""
    rows = compare(design("ar1", "iid", seeds=4, ticks=16, passages=[("", "x" * 40)] * 3), tmp_path / "out")
    assert find(rows, "ar1", "teacher", WHOLE, "recovery").estimate == pytest.approx(
        math.log(2) / -math.log(0.9), rel=0.1
    )
    assert find(rows, "ar1", "teacher", WHOLE, "kept").estimate == pytest.approx(0.9**8, rel=0.1)
    white = find(rows, "iid", "teacher", WHOLE, "coherence")
    assert white.estimate == pytest.approx(metrics.white_noise_coherence(512), abs=1e-3)


def test_the_loss_is_that_of_the_text(done: tuple[Path, list[Any]]) -> None:
    _, rows = done
    model, losses = tiny(backend="reference"), []
    for _, text in TEXTS[:6]:
        tokens = list(text.encode())[:11]
        logits, _ = model.forward(tokens, every=True)
        losses.append(-metrics.log_softmax(logits)[np.arange(2, 10), tokens[3:]].mean())
    row = find(rows, "rwkv", "teacher", WHOLE, "loss")
    assert row.estimate == pytest.approx(np.mean(losses), rel=1e-5)
    assert find(rows, "rwkv", "teacher", WHOLE, "bits_per_byte").estimate == pytest.approx(
        row.estimate / math.log(2), rel=1e-5
    )
    assert row.low < row.estimate < row.high
    assert (row.prompts, row.runs) == (6, 6)


def test_a_topic_is_probed_on_prompts_held_out(tmp_path: Path) -> None:
    """Texts of two letters: the state holds which, but for labels that are shuffled among the prompts."""
    texts = [(topic, letter * 20) for topic, letter in zip("ab" * 5, "xy" * 5, strict=True)]
    rows = compare(design("rwkv", prompts=10, seeds=1, passages=texts), tmp_path / "out", models())
    row, null, p = (find(rows, "rwkv", "teacher", "layers.1.wkv", m) for m in ("probe", "probe_null", "probe_p"))
    assert row.estimate == 1.0
    assert row.note == "chance 0.5"
    assert row.prompts == 10
    assert null.estimate < 0.8
    assert p.estimate < 0.05


def test_a_push_that_ends_in_no_number_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chaotic attractor pushed out of its basin goes to infinity: those runs are told, and not in the median."""
    plain = strike.recovery

    def escaped(substrate: Any, path: Any, *rest: Any, **more: Any) -> Any:
        found = plain(substrate, path, *rest, **more)
        if rest[4] == 1:  # of the second seed
            found["position"]["curve"][3:] = [float("nan")] * len(found["position"]["curve"][3:])
        return found

    monkeypatch.setattr(strike, "recovery", escaped)
    rows = compare(design("physics"), tmp_path / "out", models())
    row = find(rows, "physics", "teacher", "position", "recovery")
    assert "3 of 6 pushes ended in numbers that are not finite and are left out" in row.note
    assert (row.estimate is None) or math.isfinite(row.estimate)
    assert math.isfinite(find(rows, "physics", "teacher", "position", "kept").estimate)
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    json.loads(manifest, parse_constant=lambda name: pytest.fail(name))


# going on


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_the_same(
    done: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rookery.lab.report.pictures", lambda *args: "")
    folder, plan = tmp_path / "out", design("rwkv", "physics", "nulls", prompts=6)
    for survived in (1, 0, 14):
        left = iter(range(survived))

        def fail(*args: Any, left: Any = left) -> Any:
            if next(left, None) is None:
                raise Killed
            return measure(*args)

        monkeypatch.setattr(room, "measure", fail)
        with pytest.raises(Killed):
            compare(plan, folder, models())
        with (folder / ledger.NAME).open("ab") as file:
            file.write(b'{"key": ["rwkv", 5, 1], "teach')  # torn
    assert not (folder / "report.html").exists()
    assert len(ledger.read(folder)[1]) == 15
    made: list[Any] = []
    monkeypatch.setattr(room, "measure", lambda *args: made.append(args) or measure(*args))
    compare(plan, folder, models())
    assert len(made) == 5 * 6 * 2 - 15
    assert (folder / "metrics.csv").read_bytes() == (done[0] / "metrics.csv").read_bytes()


def test_a_folder_of_another_experiment_is_refused(done: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, _ = done
    before = (folder / ledger.NAME).read_bytes()
    with pytest.raises(CannotWrite, match=r"another experiment \(design.ticks 8, now 9\)"):
        compare(design("rwkv", "physics", "nulls", prompts=6, ticks=9), folder, models())
    with pytest.raises(CannotWrite, match=r"another experiment \(substrates\.rwkv\.model"):
        compare(design("rwkv", "physics", "nulls", prompts=6), folder, Models(tiny("v6"), physics=models().physics))
    assert (folder / ledger.NAME).read_bytes() == before
    (tmp_path / "mine.txt").write_text("dear diary")
    with pytest.raises(CannotWrite, match="not empty and holds no results"):
        compare(design("iid"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot be written"):
        compare(design("iid"), tmp_path / "file" / "out")


def test_damaged_and_absent_results(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"results\.jsonl"):
        ledger.read(tmp_path)
    (tmp_path / ledger.NAME).write_text('{"format": "rookery.lab.results.1", "header": {}}\n[]\n')
    with pytest.raises(DamagedFile):
        ledger.read(tmp_path)
    (tmp_path / ledger.NAME).write_text('{"format": "rookery.lab')  # killed in its first line
    ledger.Ledger(tmp_path, {"a": 1})
    assert ledger.read(tmp_path) == ({"a": 1}, {})


def test_a_missing_extra_is_told_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None if name == "transformers" else object())
    with pytest.raises(MissingExtra, match=r"rookery\[transformers\]"):
        compare(design("iid", "transformer"), tmp_path / "out")
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"rookery\[lab\]"):
        compare(design("iid"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_transformer_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    rows = compare(design("transformer", passages=PASSAGES, ticks=10), tmp_path / "out")
    assert find(rows, "transformer", "teacher", WHOLE, "exponent").estimate is None
    assert "not carried on" in find(rows, "transformer", "teacher", "layers.0.resid", "recovery").note
    assert 1 < find(rows, "transformer", "teacher", WHOLE, "loss").estimate < 9
    assert find(rows, "transformer", "teacher", "layers.0.resid", "kl").estimate > 0
