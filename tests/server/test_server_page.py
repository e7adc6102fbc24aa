"""The page in a real browser, before a real server with the packaged model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from secrets import token_hex

import browser
import httpx
import pytest
from serving import Process

import rookery
from adapters_made import adapter
from rookery.weights.adapters import file

CHROMIUM = browser.find()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
PAINTED = """(() => { const c = document.querySelector("#heat");
    const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    return new Set(Array.from({length: data.length / 4}, (_, i) => data.slice(4 * i, 4 * i + 3).join())).size; })()"""
IDLE = 'document.querySelector("#stop").hidden'


def find(selector: str, n: int = 0) -> str:
    return f"document.querySelectorAll({selector!r})[{n}]"


def texts(selector: str) -> str:
    return f"Array.from(document.querySelectorAll({selector!r}), (e) => e.textContent)"


@pytest.fixture
def page(gosling_process: Process, tmp_path: Path) -> Iterator[browser.Browser]:
    """The page of a server, open, with a key of its own and so no talks; whatever goes wrong in it fails the test."""
    assert CHROMIUM is not None
    opened = browser.Browser(CHROMIUM, tmp_path / "profile")
    try:
        opened.go(gosling_process.url)
        opened.run(f"sessionStorage.setItem('fields', JSON.stringify({{key: '{token_hex(8)}'}}))")
        opened.reload()
        opened.wait(f"{find('#model')}.textContent === 'gosling'")
        yield opened
        assert opened.troubles == []
    finally:
        opened.close()


def say(page: browser.Browser, text: str, turns: int) -> str:
    """Send and wait for the reply; `turns`: of the talk then."""
    page.click(find("#text"))
    page.write(text)
    page.enter()
    page.wait(f"{IDLE} && {texts('#turns button')}.length === {turns} && {find('#text')}.value === ''")
    return str(page.run(texts(".reply"))[-1])


def asking(page: browser.Browser, more: str) -> None:
    """From now on the page's requests for replies ask for `more` too, a JavaScript object."""
    page.run(
        "const given = window.fetch; window.fetch = (path, o) => given(path, o.body ?"
        f"{{...o, body: JSON.stringify({{...JSON.parse(o.body), ...{more}}})}} : o)"
    )


def test_a_reply_streams_and_the_strip_is_painted(page: browser.Browser) -> None:
    page.run(
        "window.lengths = new Set(); new MutationObserver(() => window.lengths.add("
        f"{find('.reply')}?.textContent.length)).observe({find('#log')}, {{childList: true, subtree: true}})"
    )
    page.run(f"{find('input[name=temperature]')}.value = 0")
    reply = say(page, "What is your name?", 1)
    assert reply.strip()
    assert page.run("window.lengths.size") > 2, "the reply came all at once"
    assert page.run(PAINTED) > 2, "one colour, or none"
    assert page.run(f"{find('#speed')}.textContent").endswith("tokens/s")
    assert page.run(texts(".said")) == ["What is your name?"]


def test_a_branch_from_an_old_turn_and_a_reload(page: browser.Browser) -> None:
    first = say(page, "One.", 1)
    second = say(page, "Two.", 2)
    page.click(find("#turns button", 0))
    page.wait(f"{texts('.said')}.join() === 'One.'")
    assert page.run(texts(".reply")) == [first]
    third = say(page, "Three.", 3)
    assert page.run(texts(".said")) == ["One.", "Three."]
    assert page.run(texts("#turns button")) == ["One.", "Two.", "Three."]
    assert page.run(texts("#turns .path")) == ["One.", "Three."]

    page.reload()
    page.wait(f"{texts('.said')}.join() === 'One.,Three.'")
    assert page.run(texts(".reply")) == [first, third]
    assert page.run(texts("#turns [aria-current]")) == ["Three."]
    page.click(find("#turns button", 1))
    page.wait(f"{texts('.said')}.join() === 'One.,Two.'")
    assert page.run(texts(".reply")) == [first, second]


def test_stop_keeps_what_was_written(page: browser.Browser) -> None:
    asking(page, "{regex: '(la ){100000}', max_output_tokens: 400000}")
    page.click(find("#text"))
    page.write("Sing.")
    page.enter()
    page.wait(f"{find('.reply')}?.textContent.length > 5000")
    page.wait("(({scrollHeight, scrollTop, clientHeight}) => scrollTop && scrollHeight - scrollTop - clientHeight < 40)"
              f"({find('#log')})")  # fmt: skip
    page.click(find("#stop"))
    page.wait(f"{IDLE} && {texts('#log .note')}.join() === 'stopped'")
    kept = page.run(texts(".reply"))[0]
    assert 5000 < len(kept) < 300_000
    page.reload()
    page.wait(f"{texts('.reply')}.length")
    assert page.run(texts(".reply")) == [kept]


def test_hostile_text_stays_text(page: browser.Browser) -> None:
    escaped = "".join(f"\\\\x{ord(c):02x}" if not c.isalnum() else c for c in HOSTILE)
    asking(page, f"{{regex: '{escaped}'}}")
    assert say(page, HOSTILE, 1) == HOSTILE, "the model's words"
    assert page.run(texts(".said")) == [HOSTILE]
    page.reload()
    page.wait(f"{texts('.reply')}.length")
    assert page.run(texts(".reply")) == [HOSTILE]
    assert page.run("document.querySelectorAll('main img, aside img, main script, aside script').length") == 0
    assert page.run("window.hit") is None


def test_hostile_text_stays_text_while_it_streams(page: browser.Browser) -> None:
    data = dumps({"type": "response.output_text.delta", "delta": HOSTILE})
    page.run(f"window.fetch = async () => new Response({dumps(f'data: {data}' + chr(10) * 2)})")
    page.run(
        "window.added = []; new MutationObserver((all) => all.forEach((one) => window.added.push(...one.addedNodes)))"
        f".observe({find('#log')}, {{childList: true, subtree: true}})"
    )
    page.click(find("#text"))
    page.write("Hello.")
    page.enter()
    page.wait(f"window.added.some((node) => node.nodeType === Node.TEXT_NODE && node.data === {dumps(HOSTILE)})")
    assert page.run("window.added.map((node) => node.nodeName)") == ["P", "P", "#text"]


def test_the_policy_stops_what_is_put_in_as_markup(page: browser.Browser) -> None:
    page.run(f"{find('#log')}.innerHTML = '<img src=x onerror=\"window.hit=1\">'")
    page.wait(f"{find('#log img')}.complete")
    assert page.run("window.hit") is None
    assert any("Content Security Policy" in trouble for trouble in page.troubles)
    page.troubles.clear()


def test_an_error_is_a_line_and_the_message_is_not_lost(page: browser.Browser) -> None:
    page.run(f"{find('input[name=top_p]')}.value = 7")
    page.click(find("#text"))
    page.write("Hot.")
    page.enter()
    said = page.wait(f"{find('#error')}.textContent")
    assert "top_p" in said
    assert "(request " in said
    assert page.run(f"{find('#text')}.value") == "Hot."
    assert page.run(texts(".said")) == []
    assert len(page.troubles) == 1, "the browser notes the status 400"
    page.troubles.clear()


def test_talks_are_listed_begun_and_deleted(page: browser.Browser) -> None:
    say(page, "First talk.", 1)
    page.click(find("#new"))
    page.wait(f"{texts('.said')}.length === 0")
    say(page, "Second talk.", 1)
    page.wait(f"{texts('#list li')}.length === 2")
    page.click(find("#list li .delete"))
    page.wait(f"{texts('#list li')}.length === 1 && {texts('.said')}.length === 0")
    assert len(page.asked) == 1
    assert "Second talk." in page.asked[0]


def test_shift_enter_is_a_new_line(page: browser.Browser) -> None:
    page.click(find("#text"))
    page.write("a")
    page.enter(shift=True)
    page.write("b")
    assert page.run(f"{find('#text')}.value") == "a\nb"
    assert page.run(texts(".said")) == []


def test_a_narrow_screen(page: browser.Browser) -> None:
    page.size(400, 800)
    say(page, "A word that is long: " + "x" * 200, 1)
    # A fast model's figure in a wide font must not push the page out.
    page.run(f"{find('#speed')}.textContent = '12,345,678.9 tokens/s and a wide font'")
    assert page.run("document.documentElement.scrollWidth") <= 400
    for name in ("talks", "settings"):
        assert not page.run(f"{find('#' + name)}.checkVisibility()")
        page.click(find(f"#show-{name}"))
        assert page.run(f"{find('#' + name)}.checkVisibility()")
        assert page.run("document.documentElement.scrollWidth") <= 400
    assert not page.run(f"{find('#talks')}.checkVisibility()"), "one panel at a time"


def test_every_field_has_a_name(page: browser.Browser) -> None:
    unnamed = "Array.from(document.querySelectorAll('input, textarea')).filter((e) => !e.labels.length).length"
    assert page.run(unnamed) == 0
    assert page.run(f"{find('#talks')}.getAttribute('aria-label')")


def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(
    process: Callable[..., Process], tmp_path: Path, page: browser.Browser
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-long-key chat me\n")
    keys.chmod(0o600)
    page.go(process("--api-key-file", keys).url)
    page.wait(f"{find('#error')}.textContent")
    page.click(find("input[name=key]"))
    page.write("a-long-key")
    page.enter()
    page.wait(f"{find('#model')}.textContent === 'gosling'")
    page.reload()
    page.wait(f"{find('#model')}.textContent === 'gosling'")
    assert say(page, "Hello.", 1).strip()
    assert all("401" in trouble for trouble in page.troubles)
    page.troubles.clear()


def test_the_files_may_talk_with_their_own_server_only(gosling_process: Process) -> None:
    for path, media in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = httpx.get(gosling_process.url + path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_a_new_talk_has_the_model_that_is_chosen_and_keeps_it(process: Callable[..., Process], tmp_path: Path) -> None:
    model = rookery.load("gosling")
    file.write(tmp_path / "one.safetensors", adapter(model.weights))
    server = process("--adapter", f"one={tmp_path / 'one.safetensors'}")
    assert CHROMIUM is not None
    page = browser.Browser(CHROMIUM, tmp_path / "profile")
    try:
        page.go(server.url)
        page.wait(f"{texts('#models option')}.join() === 'gosling,one'")
        page.run(
            "window.asked = []; const given = window.fetch; window.fetch = (path, o) => {"
            "if (o.body) window.asked.push(JSON.parse(o.body).model ?? null); return given(path, o) }"
        )
        page.run(f"{find('#models select')}.value = 'one'")
        say(page, "Hello", 1)
        page.run(f"{find('#models select')}.value = 'gosling'")
        say(page, "Go on", 2)
        assert page.run("window.asked") == ["one", None]
        with server.client() as client:
            (talk,) = client.get("/v1/states").json()["data"]
            turns = client.get(f"/v1/states/{talk['id']}").json()["turns"]
            assert {client.get(f"/v1/responses/{turn['id']}").json()["model"] for turn in turns} == {"one"}
        assert page.troubles == []
    finally:
        page.close()
