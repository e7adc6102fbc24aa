"""An experiment as one page: a file that needs no network, with its numbers, its pictures and what they do not say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rookery.lab import look, plots
from rookery.lab.design import LANGUAGE, NULLS
from rookery.lab.look import TITLES
from rookery.lab.metrics import white_noise_coherence
from rookery.lab.motion import WHOLE
from rookery.lab.plots import WHITE
from rookery.lab.rows import UNITS, Row

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem}h2{margin-top:2.5rem;border-bottom:1px solid #bbb}h3{margin-top:1.8rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .55rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}
th{background:#f2f2f2}th:first-child,td:first-child{text-align:left;white-space:nowrap}
td small{color:#555;display:block}.wide{overflow-x:auto}figure{margin:1rem 0}figure svg{width:100%;height:auto}
figcaption,.notes{color:#333;font-size:.9rem}.warn{border-left:4px solid #D55E00;padding:.2rem 1rem;background:#fdf3ec}
pre{background:#f6f6f6;padding:1rem;overflow-x:auto;font-size:.8rem}a{color:#0072B2}
"""

COLUMNS = (  # (condition, metric, heading) of each component's table
    ("teacher", "rel_delta", "rel_delta, teacher-forced"),
    ("free", "rel_delta", "rel_delta, free-running"),
    ("teacher", "memory", "autocorrelation time"),
    ("free", "memory", "the same, free-running"),
    ("teacher", "dimension", "effective dimension"),
    ("free", "dimension", "the same, free-running"),
    ("teacher", "recovery", "recovery half-life"),
    ("teacher", "exponent", "largest exponent"),
    ("teacher", "probe", "probe of the topic"),
    ("teacher", "probe_null", "its shuffled null"),
    ("teacher", "kl", "KL of the next token"),
    ("teacher", "floor", "numeric noise floor"),
)
CASE = (
    ("teacher", "state_delta", "state_delta"),
    ("teacher", "coherence", "coherence"),
    ("free", "state_delta", "state_delta, free"),
    ("free", "coherence", "coherence, free"),
    ("teacher", "rel_delta", "rel_delta"),
    ("teacher", "coherence_cv", "coherence_cv"),
)
CAPTIONS = {
    "coherence": "Coherence of all components together by the case's definition (left) and without units (right). "
    "Lines: 95 % intervals over prompts. What a null reaches as well says nothing of a model.",
    "delta_series": "How much all components together change per tick. Line: median; band: 5 to 95 % of runs.",
    "heat_map": "Relative change per tick by component, mean over prompts, teacher-forced.",
    "recovery": "Distance from the undisturbed run after a push, teacher-forced. Line: median; band: 5 to 95 %. Of the "
    "Transformer the distance of all layers: what is pushed is not carried on, and only the KV cache remembers.",
    "trajectories": "First two principal components of one prompt of each topic (of an RWKV: its WKV state; each "
    "component scaled to length 1; random projection to 64 numbers). The nulls are matched prompt by prompt, which is "
    "why theirs lie apart: a probe of a null would read the matching.",
    "singular_spectra": "Singular values of each WKV head after the last tick, over the largest; mean over prompts.",
    "effective_rank": "exp of the entropy of the singular values over their sum, mean over heads. Band: 5 to 95 %.",
    "half_lives": "Half-lives of the WKV state's channels by their decay alone, and of single writes with removal "
    "(v7), median over heads and writes.",
}


def html(header: Mapping[str, Any], records: Mapping[Any, Mapping[str, Any]], found: Sequence[Row]) -> str:
    """The page. Raises MissingExtra without matplotlib."""
    notes = _Notes()
    topics = [topic for topic, _ in header["design"]["passages"]]
    parts = [
        f"<h1>{escape(_title(header))}</h1>",
        _settings(header, records),
        "<h2>The case's two numbers, and what should stand beside them</h2>",
        _warning(found),
        _case(found, notes),
        "<h2>Pictures</h2>",
        pictures(plots.all_plots(records, found, topics), CAPTIONS),
        "<h2>Each substrate</h2>",
        *(_substrate(name, found, notes) for name in header["design"]["substrates"]),
        "<h2 id='notes'>Notes</h2>",
        notes.html(),
        "<h2>Record</h2>",
        f"<pre>{escape(json.dumps(header, indent=1))}</pre>",
    ]
    return page(_title(header), parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of these parts, which needs nothing else."""
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
        f"content='width=device-width'><title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def pictures(draw: Mapping[str, Callable[[], Any]], captions: Mapping[str, str]) -> str:
    """Every picture that there is, with its caption. Raises MissingExtra without matplotlib."""
    parts = []
    with look.styled():
        for name, one in draw.items():
            if (made := one()) is not None:
                svg = look.saved(made, "svg").decode()
                svg = svg[svg.index("<svg") :].replace("<svg ", f"<svg role='img' aria-label='{escape(name)}' ", 1)
                parts.append(f"<figure>{_own_ids(svg, name)}<figcaption>{escape(captions[name])}</figcaption></figure>")
    return "\n".join(parts)


class _Notes:
    """Footnotes, each text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        number = self.texts.index(text) + 1
        return f"<sup><a href='#note{number}'>{number}</a></sup>"

    def html(self) -> str:
        items = "".join(f"<li id='note{i}'>{escape(text)}</li>" for i, text in enumerate(self.texts, 1))
        return f"<ol class='notes'>{items}</ol>" if items else "<p>None.</p>"


def _title(header: Mapping[str, Any]) -> str:
    names = [TITLES[name] for name in header["design"]["substrates"] if name not in NULLS]
    return f"State lab: {', '.join(names) or 'nulls'}" + (
        " and nulls" if set(header["substrates"]) & set(NULLS) else ""
    )


def _settings(header: Mapping[str, Any], records: Mapping[Any, Any]) -> str:
    d = header["design"]
    tick = "1 token" if d["tokens_per_tick"] == 1 else f"a generation of {d['tokens_per_tick']} tokens"
    wanted = len(d["substrates"]) * d["prompts"] * d["seeds"]
    unfinished = f" <b>Unfinished: {len(records)} of {wanted} runs.</b>" if len(records) < wanted else ""
    s, after = d["sampling"], min(d["watched"], d["ticks"] // 2)
    abouts = "".join(_about(name, about) for name, about in header["substrates"].items())
    return (
        f"<p>{d['prompts']} prompts &times; {d['seeds']} seeds, {d['ticks']} ticks of {tick} after a beginning of "
        f"{d['prefix']} tokens. Free-running text is sampled at temperature {s['temperature']:g}, top_p "
        f"{s['top_p']:g}. A push is {d['size']:g} of a component's L2 norm, half way, and followed for {after} ticks. "
        "Intervals are 95 %, by bootstrap over prompts, everything of one prompt averaged first; with fewer than 10 "
        "prompts they are too narrow. What a given text decides alone is measured with the first seed."
        f"{unfinished}</p>\n<ul>{abouts}</ul>"
    )


def _about(name: str, about: Mapping[str, Any]) -> str:
    said = [str(about["state"])]
    if "fingerprint" in about:
        said.insert(0, f"{about['model']}, {about['layers']} layers &times; {about['width']}, {about['arithmetic']}")
        said.append(f"fingerprint {about['fingerprint'][:16]}")
    return f"<li><b>{escape(TITLES[name])}</b>: {'; '.join(said)}</li>"


def _warning(found: Sequence[Row]) -> str:
    scores = {r.substrate: r.estimate for r in found if r.metric == "coherence" and _is_whole(r)}
    white = scores.get("iid")
    here = f" White noise matched to these states scores {white:.4f} here." if white is not None else ""
    reach = f"{white_noise_coherence(WHITE):.4f}, of 100,000 numbers {white_noise_coherence(100_000):.6f}"
    return (
        "<p class='warn'>coherence by its first definition, 1/(1 + variance of the deltas), scores white noise near "
        f"1: independent Gaussian states of {WHITE} numbers and unit variance reach {reach}.{here} It grows with the "
        "size of a state and changes with its units, so values of two substrates cannot be compared; it is shown as "
        "the case defined it. rel_delta has no units, and coherence_cv, 1/(1 + (sd/mean)&sup2;) of it, must be read "
        "beside its mean: a steady churn is not rest.</p>"
    )


def _is_whole(r: Row) -> bool:
    return r.condition == "teacher" and r.component == WHOLE


def _case(found: Sequence[Row], notes: _Notes) -> str:
    picked = {(r.substrate, r.condition, r.metric): r for r in found if r.component == WHOLE}
    names = [name for name in TITLES if (name, "teacher", "coherence") in picked]
    why = {name: picked.get((name, "free", "rel_delta")) for name in names}
    rows = [
        [
            TITLES[name],
            *(_cell(picked.get((name, condition, metric)), notes, why[name]) for condition, metric, _ in CASE),
        ]
        for name in names
    ]
    return _table(["all components together", *(_heading(metric, title) for _, metric, title in CASE)], rows)


def _substrate(name: str, found: Sequence[Row], notes: _Notes) -> str:
    mine = {(r.condition, r.component, r.metric): r for r in found if r.substrate == name}
    floors = [r for r in found if r.substrate == name and r.metric == "floor" and r.estimate is not None]
    mine |= {("teacher", r.component, "floor"): r for r in sorted(floors, key=lambda r: r.estimate or 0.0)}  # largest
    components = list(dict.fromkeys(r.component for r in found if r.substrate == name))
    if not components:
        return f"<h3>{escape(TITLES[name])}</h3><p>No results yet.</p>"
    rows = []
    for component in components:
        cells = [_cell(_of(mine, condition, component, metric), notes) for condition, metric, _ in COLUMNS]
        rows.append(["all together" if component == WHOLE else component, *cells])
    table = _table(["component", *(_heading(metric, title) for _, metric, title in COLUMNS)], rows)
    inside = f"{_loss(name, mine)}{table}"
    if name in NULLS:
        return f"<details><summary><b>{escape(TITLES[name])}</b></summary>{inside}</details>"
    return f"<h3>{escape(TITLES[name])}</h3>{inside}"


def _of(mine: Mapping[tuple[str, str, str], Row], condition: str, component: str, metric: str) -> Row | None:
    """A component's number, or the reason why all components of this substrate lack it."""
    wanted = [(condition, component, metric), (condition, WHOLE, metric.removesuffix("_null"))]
    wanted += [(condition, WHOLE, "rel_delta")] if condition == "free" else []
    own, *shared = [mine.get(key) for key in wanted]
    return own or next((row for row in shared if row is not None and row.estimate is None), None)


def _loss(name: str, mine: Mapping[tuple[str, str, str], Row]) -> str:
    if name not in LANGUAGE:
        return ""
    said = [
        f"{_number(row.estimate)} {UNITS[metric]}{_interval(row)}"
        for metric in ("loss", "bits_per_byte")
        if (row := mine.get(("teacher", WHOLE, metric))) and row.estimate is not None
    ]
    return f"<p>Language-model loss on these texts: {'; '.join(said)}.</p>" if said else ""


def _heading(metric: str, title: str) -> str:
    return f"{escape(title)}<br><small>{escape(UNITS[metric])}</small>"


def _cell(row: Row | None, notes: _Notes, fallback: Row | None = None) -> str:
    row = row or (fallback if fallback is not None and fallback.estimate is None else None)
    if row is None:
        return "-" + notes.mark("measured for all components together, or for each alone; see the other rows")
    mark = notes.mark(row.note) if row.note else ""
    if row.estimate is None:
        return f"-{mark}"
    if row.metric == "recovery" and row.estimate < 1:
        return f"&lt; 1{mark}"  # of a tick: what a fit says below that is made up
    return f"{_number(row.estimate)}{mark}{_interval(row, small=True)}"


def _interval(row: Row, small: bool = False) -> str:
    if row.low is None or row.high is None:
        return ""
    text = f"{_number(row.low)} to {_number(row.high)}"
    return f"<small>{text}</small>" if small else f" ({text})"


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return (
        f"{x:.4g}"
        if x == 0 or 1e-3 <= abs(x) < 0.995 or abs(x) >= 1.005 or x == 1
        else (f"{x:.5f}" if abs(x) >= 0.995 else f"{x:.2e}")
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return (
        f"<div class='wide'><table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>"
        f"{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table></div>"
    )


def _own_ids(svg: str, name: str) -> str:
    """Every id of a picture belongs to it alone, as several are in one page."""
    return svg.replace(' id="', f' id="{name}-').replace('"#', f'"#{name}-').replace("url(#", f"url(#{name}-")
