"""`rookery lab`: its commands by hand, their JSON, and a user's mistakes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from terminal import BYTES, MODEL, check_mistake, environment

import rookery as package
from rookery.lab.llama_state import to_bytes

COMPARE = ["--prompts", "2", "--ticks", "8", "--seeds", "1"]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    (tmp_path / "texts.tsv").write_text(
        "bird\tA goose swims on the lake today.\n\nbeast\tA bear sleeps in the wood today.\n"
    )
    return str(tmp_path / "texts.tsv")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.lab.summary.DRAWS", 20)


# compare


def test_compare_and_its_report(rookery: Any, tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    given = ["lab", "compare", "rwkv", "physics", "nulls", *BYTES, *COMPARE, "-f", texts, "--out", out]
    found = rookery(*given, "--json")
    assert found.code == 0
    assert all(line.startswith("rookery: comparing rwkv, ") for line in found.err.splitlines())  # where it is slow
    rows = json.loads(found.out, parse_constant=lambda name: pytest.fail(name))
    assert {row["substrate"] for row in rows} == {"rwkv", "physics", "frozen", "iid", "ar1"}
    assert {"estimate", "low", "high", "unit", "note"} <= set(rows[0])
    before = (out / "metrics.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("rookery.lab.report.pictures", lambda *_: "")  # they take longest, and are drawn twice beside
        again = rookery(*given)  # nothing is left to do
    assert (again.code, again.out) == (0, f"{out / 'report.html'}\n")
    assert (out / "metrics.csv").read_bytes() == before
    assert "native float32" in (out / "manifest.json").read_text() or "reference" in (out / "manifest.json").read_text()
    (out / "report.html").unlink()
    assert rookery("lab", "report", out, "--plots", tmp_path / "plots").out == f"{out / 'report.html'}\n"
    assert (out / "metrics.csv").read_bytes() == before
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"heat_map.png", "heat_map.svg", "coherence.png", "recovery.svg"} <= names
    check_mistake(rookery(*given, "--size", "0.2"), str(out), "another experiment", "design.size 0.1, now 0.2")


def test_mistakes_of_compare(rookery: Any, tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    out = ["--out", tmp_path / "out"]
    check_mistake(rookery("lab", "compare", "transfomer", *out), "'transfomer'", "did you mean transformer?")
    check_mistake(rookery("lab", "compare", "--tick", "hour", *out), "'hour'", "token or generation")
    check_mistake(rookery("lab", "compare", "iid", "--prompts", "31", *out), "31 prompts, but there are 30 texts", "-f")
    check_mistake(rookery("lab", "compare", "iid", "-f", tmp_path / "no.txt", *out), "no.txt", "no such file")
    (tmp_path / "one.txt").write_text("a text\n")
    check_mistake(rookery("lab", "compare", "iid", "-f", tmp_path / "one.txt", *out), "one.txt", "at least 2")
    (tmp_path / "bad.txt").write_bytes(b"a\n\xff\n")
    check_mistake(rookery("lab", "compare", "iid", "-f", tmp_path / "bad.txt", *out), "bad.txt", "not valid UTF-8")
    check_mistake(rookery("lab", "compare", "iid", "-f", texts, *out), "text 1 has only", "at most")
    check_mistake(rookery("lab", "compare", "rwkv", "-m", tmp_path / "none.pth", *out), "none.pth")
    monkeypatch.setattr("rookery.lab.compare.find_spec", lambda name: None if name == "transformers" else True)
    check_mistake(rookery("lab", "compare", "transformer", *out), "pip install 'rookery[transformers]'")
    monkeypatch.setattr("rookery.lab.compare.find_spec", lambda name: None)
    check_mistake(rookery("lab", "compare", "iid", *out), "pip install 'rookery[lab]'")
    assert not (tmp_path / "out").exists()


# watch


def test_watch_through_a_pipe(rookery: Any, tmp_path: Path) -> None:
    log = tmp_path / "watch.jsonl"
    given = ["lab", "watch", *BYTES, "--log", log, "--window", "4", "-n", "3", "--seed", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = rookery(*given, "goose", "bear", "--carry")
    assert code == 0
    assert out.count("\n") >= 2
    assert len(err.splitlines()) == len("goose") + len("bear") + 2 * 3  # the last token is read for what is carried
    assert err.splitlines()[0] == "sequence 0 tokens 1  the first of its sequence"
    said = err.splitlines()[1]
    assert said.startswith("sequence 0 tokens 2  delta ")
    for part in ("  coherence ", "  att_shift ", "  ffn_shift ", "  wkv ", "  rank "):
        assert len(re.findall(part + r"[\d.]", said)) == 1
    rows = rookery(*given, "goose", "--json", "--every", "2", "--no-ranks")
    assert rows.code == 0
    parsed = [json.loads(line) for line in rows.out.splitlines()]
    assert {row["run"] for row in parsed} == {2}  # the log goes on
    assert "effective_rank" not in parsed[-1]
    assert sum(1 for line in log.read_text().splitlines() if '"capture"' in line) == len(err.splitlines()) + len(parsed)
    pytest.importorskip("matplotlib")
    assert rookery("lab", "report", log).out == f"{log}.html\n"
    check_mistake(rookery("lab", "report", log), f"{log}.html", "exists already; --force")
    check_mistake(rookery("lab", "report", log, "--plots", tmp_path / "p"), "--plots is for an experiment")


def test_mistakes_of_watch(rookery: Any, tmp_path: Path) -> None:
    check_mistake(rookery("lab", "watch", *BYTES), "no prompt")
    check_mistake(rookery("lab", "watch", *BYTES, "--window", "1", "goose"), "--window", "2 or more")
    log = tmp_path / "watch.jsonl"
    assert rookery("lab", "watch", *BYTES, "--log", log, "-n", "1", "goose").code == 0
    other = Path(MODEL).with_name("v6.safetensors")
    check_mistake(
        rookery("lab", "watch", "-m", other, "--tokenizer", "bytes", "--log", log, "goose"), "log of another model"
    )
    (tmp_path / "notes.txt").write_text("dear diary\n")
    check_mistake(rookery("lab", "watch", *BYTES, "--log", tmp_path / "notes.txt", "goose"), "no log of the monitor")


def test_watch_on_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    main, side = pty.openpty()
    command = [sys.executable, "-m", "rookery", "lab", "watch", *BYTES, "-n", "4", "--seed", "1", "goose"]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=subprocess.PIPE, env=environment(TERM="xterm-256color", COLUMNS="90")
    )
    os.close(side)
    seen = b""
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    _, err = process.communicate(timeout=60)
    os.close(main)
    assert process.returncode == 0, err
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    for part in ("wkv: rel_delta per capture", "white noise scores near 1", "coherence_cv", "rank ", "goose"):
        assert part in text
    assert b"\x1b[48;" in seen  # colours


def test_no_colour_is_left_alone_and_none_is_outside() -> None:
    from rookery.lab.watch import ANCHORS, colour, strips

    assert colour(0.0) == "#440154"
    assert colour(1.0) == colour(7.0) == "#fde725"
    assert len({colour(i / 50) for i in range(51)}) == 51
    assert len(ANCHORS) == 9
    rows = [{"rel_delta": {"wkv": [0.5, None]}}, {}, {"rel_delta": {"wkv": [1.0, 0.25]}}]
    assert list(strips(rows, 5)) == [("wkv", [[0.5, 1.0], [None, 0.25]], 1.0)]
    assert list(strips(rows, 1)) == [("wkv", [[1.0], [0.25]], 1.0)]
    assert list(strips([], 5)) == []


# perturb


def test_perturb(rookery: Any, tmp_path: Path) -> None:
    given = ["lab", "perturb", *BYTES, "--components", "layers.*.wkv", "--sizes", "0.01,1", "--seeds", "2", "-n", "6"]
    code, out, _ = rookery(*given, "A goose swims", "--follow", " on the lake")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["component", "size", "kl"]
    assert [line.split()[:2] for line in lines] == [
        [f"layers.{i}.wkv", size] for i in range(len(lines) // 2) for size in ("0.01", "1")
    ]
    rows = json.loads(rookery(*given, "A goose swims", "--follow", " on the lake", "--json").out)
    assert rows[1]["kl"] > rows[0]["kl"] > 0
    assert rows[0]["curve"][0] == pytest.approx(0.01, rel=1e-3)
    assert rows[0]["equal_share"] >= rows[1]["equal_share"]
    pytest.importorskip("matplotlib")
    for kind in ("png", "svg"):
        assert rookery(*given, "--plot", tmp_path / f"plot.{kind}", "A goose", "--follow", " swims").code == 0
        assert (tmp_path / f"plot.{kind}").stat().st_size > 5000


def test_mistakes_of_perturb(rookery: Any, tmp_path: Path) -> None:
    given = ["lab", "perturb", *BYTES, "-n", "2", "--seeds", "1", "goose", "--follow", "swims"]
    check_mistake(rookery(*given, "--sizes", "small"), "--sizes 'small'", "numbers with commas")
    check_mistake(rookery(*given, "--sizes", "0.1,0"), "above 0")
    check_mistake(rookery(*given, "--components", "layers.*.wvk"), "layers.*.wvk", "nearest are", "wkv")
    pytest.importorskip("matplotlib")
    check_mistake(rookery(*given, "--plot", tmp_path / "plot.jpg"), "plot.jpg", ".svg or .png")


# states


def test_capture_show_diff(rookery: Any, tmp_path: Path) -> None:
    a, b = tmp_path / "a.state", tmp_path / "b.state"
    code, out, err = rookery("lab", "capture", *BYTES, a, "A", "goose")
    assert (code, out) == (0, "")
    assert err.startswith(f"rookery: {a}: ")
    assert err.endswith(" numbers after 7 tokens\n")
    made = json.loads(rookery("lab", "capture", *BYTES, b, " swims", "--from", a, "--json").out)
    assert made["tokens"] == 6
    model = package.load(MODEL, tokenizer="bytes")
    whole = model.forward(list(b"A goose swims"))[1]
    assert (package.State.load(b, model).flat == whole.flat).all()

    shown = rookery("lab", "show", a).out.splitlines()
    assert shown[1].split()[:3] == ["numbers", "rms", "max_abs"]
    assert sum(line.startswith("  head ") for line in shown) == model.config.n_layer * model.config.n_head
    rows = json.loads(rookery("lab", "show", a, "--json").out)
    assert sum(row["numbers"] for row in rows if row["head"] is None) == whole.flat.size
    assert all(1 <= row["effective_rank"] <= model.config.head_size for row in rows if row["head"] is not None)

    rows = json.loads(rookery("lab", "diff", a, b, "--json").out)
    change = package.State.load(a).diff(package.State.load(b))
    for row in rows:
        if row["head"] is None:
            assert row["delta"] == pytest.approx(change[row["piece"]], rel=1e-6)
    assert "layers.0.wkv" in rookery("lab", "diff", a, b).out


def test_mistakes_of_state_files(rookery: Any, tmp_path: Path) -> None:
    a, b = tmp_path / "a.state", tmp_path / "b.state"
    assert rookery("lab", "capture", *BYTES, a, "goose").code == 0
    check_mistake(rookery("lab", "capture", *BYTES, a, "goose"), "a.state", "exists already; --force")
    assert rookery("lab", "capture", *BYTES, a, "goose", "--force").code == 0
    other = ["-m", Path(MODEL).with_name("v6.safetensors"), "--tokenizer", "bytes"]
    assert rookery("lab", "capture", *other, b, "goose").code == 0
    check_mistake(rookery("lab", "diff", a, b), "b.state", "another model")
    check_mistake(rookery("lab", "capture", *BYTES, tmp_path / "c", "x", "--from", b), "not of")
    check_mistake(rookery("lab", "show", MODEL), "not a state file")
    check_mistake(rookery("lab", "show", tmp_path / "none"), "none")
    check_mistake(rookery("lab", "report", tmp_path), "results.jsonl", "no such file")


def test_import_llama(rookery: Any, tmp_path: Path) -> None:
    model = package.load(MODEL, tokenizer="bytes")
    state = model.forward(list(b"goose"))[1]
    blob, out = tmp_path / "slot.bin", tmp_path / "out.state"
    blob.write_bytes(to_bytes(state, 5))
    assert rookery("lab", "import-llama", *BYTES, blob, out).code == 0
    assert (package.State.load(out, model).flat == state.flat).all()
    blob.write_bytes(b"nonsense" * 9)
    check_mistake(rookery("lab", "import-llama", *BYTES, blob, out, "--force"), "slot.bin")
    assert (package.State.load(out, model).flat == state.flat).all()


# the room


def test_help_and_names(rookery: Any) -> None:
    from rookery.cli import lab

    shown = rookery("lab", "--help")
    assert shown.code == 0
    for name in lab.COMMANDS:
        assert name in shown.out
        page = rookery("lab", name, "--help")
        assert page.code == 0
        assert f"rookery lab {name}" in page.out
    check_mistake(rookery("lab", "comapre"), "'comapre'", "did you mean compare?")
    assert rookery("lab").code == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rookery.cli.main import main; main(['lab', 'compare', '--help']); "
        "main(['lab', 'watch', '--help']); sys.exit('numpy' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment()).returncode == 0
