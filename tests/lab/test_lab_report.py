"""The pages and pictures of the lab: whole without a network, labelled, and drawn from whatever results there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import design, models, tiny

from rookery.errors import InputError, MissingExtra
from rookery.lab import ledger, log_report, look, plots, report, summary
from rookery.lab.compare import compare
from rookery.lab.metrics import white_noise_coherence
from rookery.lab.monitor import Monitor
from rookery.lab.rows import Row

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "DRAWS", 20)
        patch.setattr(summary, "SHUFFLES", 10)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    compare(design("rwkv", "physics", "nulls"), out, models())
    return out


@pytest.fixture(scope="module")
def results(folder: Path) -> tuple[dict[str, Any], dict[Any, Any], list[Row]]:
    header, records = ledger.read(folder)
    return header, records, summary.rows(header, records)


class Page(HTMLParser):
    """Ids, links and what a browser would fetch; fails on tags that do not close."""

    VOID = ("meta", "br", "img", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "data"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> Page:
    """A page that stands alone: no link but to itself, and every id once."""
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith(("#", "data:image/png;base64,")), link[:60]
        assert not link.startswith("#") or link[1:] in page.ids
    for place in re.findall(r"url\(#([^)]*)\)", text):
        assert place in page.ids
    assert "<script" not in text
    assert "@import" not in text
    return page


def test_the_page_stands_alone(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = check_page(text)
    assert text.count("<svg ") == 8
    assert {"notes", "note1"} <= set(page.ids)


def test_it_says_what_the_first_definition_is_worth(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "scores white noise near 1" in re.sub(r"\s+", " ", text)
    assert f"{white_noise_coherence(512):.4f}" in text
    for heading in ("state_delta", "coherence", "rel_delta, teacher-forced", "rel_delta, free-running", "noise floor"):
        assert heading in text


def test_a_reason_stands_where_no_number_can(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert re.search(r"<td>-<sup><a href='#note\d+'>", text)
    notes = text[text.index("<ol class='notes'>") :]
    for reason in ("it has no next token", "it never moves", "a probe would read the matching", "reads no tokens"):
        assert notes.count(reason) == 1
    assert "<td>nan" not in text
    assert "<td>inf" not in text


def test_the_same_results_give_the_same_page(folder: Path, results: Any) -> None:
    assert report.html(*results) == (folder / "report.html").read_text()


def test_a_page_of_an_unfinished_run(results: Any) -> None:
    header, records, _ = results
    part = dict(list(records.items())[:3])
    text = report.html(header, part, summary.rows(header, part))
    check_page(text)
    assert "Unfinished: 3 of 30 runs" in text
    assert "No results yet" in text


def test_texts_of_users_are_no_markup(tmp_path: Path) -> None:
    passages = [("<b>&", "<script>alert(1)</script> & a long enough text")] * 2
    compare(design("iid", prompts=2, passages=passages), tmp_path / "out", models())
    text = (tmp_path / "out" / "report.html").read_text()
    check_page(text)
    assert "&lt;script&gt;alert" in text


def test_every_picture_is_labelled(results: Any) -> None:
    header, records, rows = results
    with look.styled():
        for name, draw in plots.all_plots(records, rows, [t for t, _ in header["design"]["passages"]]).items():
            made = draw()
            words = [made.get_supxlabel(), made.get_supylabel(), made.get_suptitle()]
            for ax in made.axes:
                words += [ax.get_xlabel(), ax.get_ylabel()]
            assert len([word for word in words if word]) >= 2, name
            assert look.saved(made, "png").startswith(b"\x89PNG")
            assert name in report.CAPTIONS


def test_a_run_with_numbers_that_are_not_finite_is_drawn(results: Any) -> None:
    import copy

    header, records, _ = results
    records = copy.deepcopy(dict(records))
    for record in list(records.values())[:2]:
        record["teacher" if "teacher" in record else "free"]["layers.0.wkv"]["rel_delta"][3] = float("nan")
        record["push"]["layers.0.wkv"]["curve"][2] = float("nan")
    check_page(report.html(header, records, summary.rows(header, records)))


def test_colours_are_those_for_every_eye() -> None:
    assert len(set(look.COLOURS.values())) == len(look.COLOURS)
    assert set(look.COLOURS.values()) <= set(look.CYCLE)


def test_without_matplotlib_the_install_line(monkeypatch: pytest.MonkeyPatch, results: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"rookery\[lab\]"):
        report.html(*results)


@pytest.mark.filterwarnings("ignore:coherence by its first definition")
def test_the_page_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "watch.jsonl"
    with Monitor(tiny(), log, window=8, every=2, ranks=True) as monitor:
        monitor.model.forward(list(b"a goose and a gander and a gosling"))
    text = log_report.html(log)
    check_page(text)
    assert "17 captures in 1 runs; 0 numbers were NaN or infinite" in text
    assert text.count("<svg ") == 3


def test_a_log_without_changes(tmp_path: Path) -> None:
    log = tmp_path / "watch.jsonl"
    with Monitor(tiny(), log, every=4) as monitor:
        monitor.model.forward(list(b"goose"))
    with pytest.raises(InputError, match="0 changes were captured; at least 2"):
        log_report.html(log)


def test_a_field_of_nothing_finite_is_drawn() -> None:
    with look.styled():
        made, axes = look.figure(1, 1)
        look.heat(made, axes[0, 0], np.full((2, 3), np.nan), "x", ["0", "1"])
        assert look.saved(made, "svg")
