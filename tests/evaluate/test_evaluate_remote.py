"""A server's answers are those of the model itself; a server that is busy, broken or hostile does no harm."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import BackendError, InputError, TokenError
from rookery.evaluate.local import Local
from rookery.evaluate.remote import Remote, client
from rookery.evaluate.requests import Continue, Likelihood, Passage
from tolerances import LOGPROB_SUM

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from serving import Here

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXT = "Once upon a time there was a fox, who lived in the wood; and the fox had a brother."
KEY = "a-key-of-some-length"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOKERY_API_KEY", raising=False)


@pytest.fixture(scope="module")
def gosling() -> Any:
    return rookery.load("gosling", threads=1)


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling, max_batch=4) as made:
        yield made


REQUESTS = [
    *(Likelihood(TEXT[:n], TEXT[n : n + 9]) for n in (1, 8, 17, 40, 60)),
    *(Likelihood("The fox said:", f" {word}") for word in ("yes", "no", "Hans", "🦊")),
    Likelihood("", "Once upon a time"),  # after the prefix alone
    Likelihood((5, 6, 7), (8,)),
    Likelihood("Once upon a", " time"),  # greedy
    Passage(TEXT),
    Passage(""),
    Passage((300, 301, 302)),
    Continue("Once upon a time", 30),
    Continue("Once upon a time", 12, ("King", "\n")),
    Continue(TEXT, 0),
]


def equal(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, str):
            assert one == other
        elif hasattr(other, "greedy"):
            assert one.logprob == pytest.approx(other.logprob, abs=LOGPROB_SUM)
            assert (one.greedy, one.tokens) == (other.greedy, other.tokens)
        else:
            assert one.ids.tolist() == other.ids.tolist()
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=LOGPROB_SUM)


@pytest.mark.parametrize("prefix", [None, (7, 9)])
def test_a_server_answers_as_the_model_does(gosling: Any, on_gosling: Here, prefix: tuple[int, ...] | None) -> None:
    remote, local = Remote(f"{on_gosling.url}/v1", prefix=prefix), Local(gosling, prefix)
    assert remote.prefix == local.prefix == (prefix or (0,))
    answers = remote.answer(REQUESTS)
    equal(answers, local.answer(REQUESTS))
    assert any(answer.greedy for answer in answers if hasattr(answer, "greedy"))


def test_a_model_without_an_end_of_text_has_no_prefix() -> None:
    model = rookery.load(FIXTURES / "v6.safetensors", tokenizer="bytes", threads=1)
    with Here(model) as server:
        remote, local = Remote(server.url), Local(model)
        assert (remote.coder.end, remote.prefix) == (None, ())
        requests = [Passage("Grüße"), Passage(""), Continue("a", 5), Likelihood("ab", "c")]
        found = remote.answer(requests)
        equal(found, local.answer(requests))
        assert np.isnan(found[0].logprobs).tolist() == [True] + [False] * 6
        for asked, said in ((Likelihood("", "c"), "nothing stands before"), (Continue("", 5), "nothing to go on with")):
            for scorer in (remote, local):
                with pytest.raises(InputError, match=said):
                    scorer.answer([asked])


def test_the_coder_is_the_models(gosling: Any, on_gosling: Here) -> None:
    coder, own = Remote(on_gosling.url).coder, gosling.tokenizer
    assert (coder.vocab_size, coder.end, coder.name) == (4096, 0, "rwkv")
    for text in (TEXT, "", "é🦊\r\n\u2028", "<|endoftext|>"):
        ids = coder.encode(text)
        assert ids == own.encode(text)
        assert coder.decode_bytes(ids) == text.encode()
    half = own.encode("🦊")[1:]
    assert coder.decode_bytes([*half, 0, 65]) == own.decode_bytes([*half, 0, 65])
    assert coder.decode_bytes(own.encode("\ufffd")) == "\ufffd".encode()
    with pytest.raises(TokenError, match="4096"):
        coder.decode_bytes([4096])
    with pytest.raises(InputError, match="surrogate"):
        coder.encode("\ud83e")


def test_what_a_manifest_says(gosling: Any, on_gosling: Here) -> None:
    about, again = Remote(on_gosling.url).about, Remote(on_gosling.url, "gosling").about
    assert about == again
    assert about["fingerprint"] == Local(gosling).about["fingerprint"]
    assert on_gosling.url not in json.dumps(about)  # another port, the same figures
    with pytest.raises(InputError, match="no model 'goose'; there is gosling"):
        Remote(on_gosling.url, "goose")


def test_what_the_server_refuses_is_one_line(on_gosling: Here) -> None:
    remote = Remote(on_gosling.url)
    with pytest.raises(InputError, match=r"refuses \(400\): max_tokens: 1000001 are asked for"):
        remote.answer([Continue("a", 1_000_001)])
    with pytest.raises(TokenError, match="token 4096 is outside"):
        remote.answer([Likelihood((1,), (4096,))])


def test_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(f"{KEY} chat me\n")
    (tmp_path / "keys").chmod(0o600)
    model = rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes", threads=1)
    with Here(model, api_key_file=str(tmp_path / "keys")) as server:
        assert Remote(server.url, key=KEY).answer([Passage("ab")])[0].ids.tolist() == [97, 98]
        for key in (None, "another-key-of-some-length"):
            with pytest.raises(
                InputError, match=r"wants a key that may do this \(401\): .*; set ROOKERY_API_KEY"
            ) as error:
                Remote(server.url, key=key)
            assert str(key) not in str(error.value)
        monkeypatch.setenv("ROOKERY_API_KEY", KEY)
        assert KEY not in json.dumps(Remote(server.url).about)
    with pytest.raises(InputError, match="line ends"):
        Remote(server.url, key="a\r\nHost: b")


class Puppet(ThreadingHTTPServer):
    """Answers with what `replies` has for a path: a value as JSON, bytes as they are, or (status, headers, value)."""

    daemon_threads = True

    def __init__(self, **replies: Any) -> None:
        self.replies, self.asked = {**GOOD, **replies}, list[str]()
        super().__init__(("127.0.0.1", 0), Strings)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Puppet:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class Strings(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Puppet

    def do_GET(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        path = self.path.removeprefix("/")
        self.server.asked.append(path)
        reply = self.server.replies[path]
        reply = reply(body) if callable(reply) else reply
        status, headers, value = reply if isinstance(reply, tuple) else (200, {}, reply)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None: ...


def scored(body: Any, **columns: Any) -> Any:
    """As the route answers; `columns` instead of the true ones."""

    def choice(index: int, ids: list[int]) -> Any:
        names = [str(id) for id in ids]
        true = {
            "tokens": names,
            "token_logprobs": [None, *[-1.0] * (len(ids) - 1)],
            "top_logprobs": [None, *({name: -1.0} for name in names[1:])],
        }
        return {"index": index, "text": " x", "logprobs": {**true, **columns}}

    return {"system_fingerprint": "fp", "choices": [choice(n, ids) for n, ids in enumerate(body["prompt"])]}


GOOD: dict[str, Any] = {
    "v1/models": {"data": [{"id": "m", "meta": {"n_vocab": 10}}]},
    "props": {"total_slots": 2},
    "tokenizer_info": {"eos_token": None, "tokenizer_class": "t"},
    "tokenize": {"tokens": [1, 2]},
    "detokenize": {"content": "ab"},
    "v1/completions": scored,
}
ASKED = [Likelihood((1, 2), (3, 4))]


def test_a_puppet_that_behaves() -> None:
    with Puppet() as puppet:
        [answer] = Remote(puppet.url).answer(ASKED)
        assert (answer.logprob, answer.greedy, answer.tokens) == (-2.0, True, 2)


def test_a_server_without_log_probabilities_of_prompts_can_go_on_with_texts() -> None:
    """llama.cpp's has neither echo nor all of the routes."""
    absent = (404, {}, {"error": {"message": "no such path"}})
    short = {"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [{"x": -1.0}]}
    replies = {"props": absent, "tokenizer_info": absent, "v1/completions": lambda body: scored(body, **short)}
    with Puppet(**replies) as puppet:
        remote = Remote(puppet.url)
        assert remote.prefix == ()
        assert remote.answer([Continue((1, 2), 3), Continue("a", 3)]) == [" x", " x"]
        with pytest.raises(BackendError, match=r"no token_logprobs for each of the 4 tokens of a prompt \(echo\)"):
            remote.answer(ASKED)


def test_a_busy_server_is_asked_again() -> None:
    left = [
        (429, {"Retry-After": "0"}, {}),
        (503, {"Retry-After": "a date"}, {}),
        (502, {"Retry-After": "0"}, b"<html>"),
    ]
    with Puppet() as puppet:
        remote = Remote(puppet.url)
        puppet.replies["v1/completions"] = lambda body: left.pop() if left else scored(body)
        assert remote.answer(ASKED)[0].logprob == -2.0
        assert puppet.asked.count("v1/completions") == 1 + 4


def test_a_server_that_stays_busy() -> None:
    with Puppet(props=(503, {"Retry-After": "99"}, {})) as puppet:
        asker = client.Client(puppet.url, patience=10.0)
        with pytest.raises(BackendError, match=r"is busy \(503\) for 10 s"):
            asker.get("/props")


def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    with Puppet() as puppet:
        asker = client.Client(puppet.url)
        asker.get("/props")
        asker._idle[0].sock.shutdown(2)
        assert asker.get("/props") == {"total_slots": 2}


def without(name: str) -> Callable[[Any], Any]:
    return lambda body: {**scored(body), "choices": [{**c, name: None} for c in scored(body)["choices"]]}


def huge(body: Any) -> Any:
    return 200, {"Content-Length": 1 << 40}, b"[" * (1 << 17)


HOSTILE = {
    "no JSON": (b"<html>", "no JSON object"),
    "no object": ([], "no JSON object"),
    "deep": (b"[" * 100_000, "no JSON object"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", "no JSON object"),
    "no choices": ({"system_fingerprint": "fp", "choices": 3}, "other choices than the 1"),
    "wrong index": (without("index"), "other choices than the 1"),
    "no scores": (without("logprobs"), "no token_logprobs for each of the 4 tokens"),
    "too few": (lambda b: scored(b, token_logprobs=[None, -1.0]), "no token_logprobs for each"),
    "above zero": (lambda b: scored(b, token_logprobs=[None, -1.0, 0.5, -1.0]), "no log-probability"),
    "text": (lambda b: scored(b, token_logprobs=[None, -1.0, "-1", -1.0]), "no log-probability"),
    "infinite": (lambda b: scored(b, token_logprobs=[None, -1.0, -1e999, -1.0]), "no JSON object"),
    "overflow": (lambda b: (200, {}, json.dumps(scored(b)).replace("-1.0", "-1e999").encode()), "no log-probability"),
    "missing": (lambda b: scored(b, token_logprobs=[None, -1.0, None, -1.0]), "no log-probability"),
    "first": (lambda b: scored(b, token_logprobs=[-1.0] * 4), "no log-probability"),
    "no top": (lambda b: scored(b, top_logprobs=[None] * 4), "no likeliest token"),
    "another model": (lambda b: {**scored(b), "system_fingerprint": "fp2"}, "another model than before"),
    "moved": ((302, {"Location": "http://elsewhere"}, {}), r"fails \(302\)"),
    "fault": ((500, {}, {"error": {"message": "bad\n\x1b[31mday"}}), r"fails \(500\): bad \[31mday"),
    "huge": (huge, "more than 65536 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reply, said = HOSTILE[name]
    monkeypatch.setattr(client, "MOST_BYTES", 1 << 16)
    with Puppet() as puppet:
        remote = Remote(puppet.url)
        puppet.replies["v1/completions"] = reply
        if name == "deep":
            monkeypatch.setattr(client, "MOST_BYTES", 1 << 20)
        with pytest.raises(BackendError, match=said) as error:
            remote.answer(ASKED)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "reply", "said"),
    [
        ("v1/models", {"data": [{"id": 3}]}, "there is none"),
        ("v1/models", (404, {}, {"error": {"message": "no such path"}}), r"refuses \(404\): no such path"),
        ("v1/models", {"data": [{"id": "m", "meta": {"n_vocab": "many"}}]}, "how many tokens"),
        ("tokenize", {"tokens": [1, 10]}, "no tokens of its model"),
        ("tokenize", {"tokens": [True]}, "no tokens of its model"),
    ],
)
def test_a_hostile_beginning(path: str, reply: Any, said: str) -> None:
    with (
        Puppet(**{path: reply}) as puppet,
        pytest.raises((BackendError, InputError), match=said),
    ):
        Remote(puppet.url).answer([Passage("a b")])


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.0)
    with Puppet() as puppet:
        pass
    with pytest.raises(BackendError, match="is the server running"):
        Remote(puppet.url)
    for url in ("127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://me:secret@a", "http://a?b"):
        with pytest.raises(InputError, match="wanted a server's address"):
            Remote(url)


def test_a_server_too_slow() -> None:
    hold = threading.Event()
    with Puppet(props=lambda _: hold.wait(30) and {}) as puppet:
        asker = client.Client(puppet.url, timeout=0.2)
        with pytest.raises(BackendError, match="no answer"):
            asker.get("/props")
        hold.set()
