"""Model: forward, batches, streams, and the words of its errors."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import errors

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]


@pytest.fixture(scope="module", params=VERSIONS)
def model(request: pytest.FixtureRequest) -> rookery.Model:
    return rookery.load(FIXTURES / f"{request.param}.safetensors", tokenizer="bytes")


@pytest.fixture(scope="module")
def v7() -> rookery.Model:
    return rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes")


def test_one_id_a_list_and_an_array_are_the_same(model: rookery.Model) -> None:
    a, first = model.forward(65)
    b, second = model.forward([65])
    c, third = model.forward(np.array([65], np.uint16))
    assert a.dtype == np.float32
    assert a.shape == (model.config.n_vocab,)
    assert np.array_equal(a, b)
    assert np.array_equal(a, c)
    assert np.array_equal(first.vector(), second.vector())
    assert np.array_equal(first.vector(), third.vector())


def test_every_gives_a_row_a_token_and_ends_with_the_last(model: rookery.Model) -> None:
    rows, _ = model.forward([1, 2, 3], every=True)
    last, _ = model.forward([1, 2, 3])
    assert rows.shape == (3, model.config.n_vocab)
    assert np.array_equal(rows[-1], last)


def test_a_passed_state_is_never_changed(model: rookery.Model) -> None:
    _, state = model.forward([1, 2, 3])
    before = state.vector()
    model.forward([4, 5], state)
    model.forward_batch([[4], [5, 6]], [state, state])
    list(model.stream("ab", max_tokens=3, state=state, seed=1))
    assert np.array_equal(before, state.vector())


def test_a_long_prompt_in_chunks_is_the_whole_to_the_bit(v7: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = np.random.default_rng(0).integers(0, 256, 50)
    whole, state = v7.forward(prompt, every=True)
    monkeypatch.setattr("rookery.model.CHUNK", 7)
    seen: list[tuple[int, int]] = []
    parts, again = v7.forward(prompt, every=True, progress=lambda at, total: seen.append((at, total)))
    assert np.array_equal(whole, parts)
    assert np.array_equal(state.vector(), again.vector())
    assert seen == [(at, 50) for at in range(0, 50, 7)]


def test_greedy_stream_is_greedy_forward(model: rookery.Model) -> None:
    stream = model.stream("in", max_tokens=12, temperature=0)
    text = "".join(stream)
    tokens, logits, state = [], *model.forward(list(b"in"))
    for _ in range(12):
        tokens.append(int(logits.argmax()))
        logits, state = model.forward(tokens[-1], state)
    assert stream.tokens == tokens
    assert text == bytes(tokens).decode("utf-8", "replace")
    assert stream.stop_reason == "length"
    assert np.array_equal(stream.state.vector(), state.vector())


def test_going_on_from_a_streams_state_is_never_having_stopped(v7: rookery.Model) -> None:
    first = v7.stream([1, 2], max_tokens=5, temperature=0)
    list(first)
    logits, _ = v7.forward([1, 2, *first.tokens])
    again, _ = v7.forward(first.tokens[-1], v7.forward([1, 2, *first.tokens[:-1]])[1])
    assert np.array_equal(logits, again)
    assert first.state.delta(v7.forward([1, 2, *first.tokens])[1]) == 0


def test_a_seed_gives_the_same_text_and_two_seeds_do_not(v7: rookery.Model) -> None:
    texts = [v7.generate("Once", max_tokens=30, seed=seed, top_p=1.0) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_end_token_ends_only_where_the_tokenizer_has_one() -> None:
    class Ending:
        """Bytes, with an end."""

        def __init__(self, end: int | None) -> None:
            self.inner, self.end = rookery.tokenizer.Bytes(), end

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    path = FIXTURES / "v7.safetensors"
    greedy = rookery.load(path, tokenizer="bytes").stream([7], max_tokens=4, temperature=0)
    list(greedy)
    ended = rookery.load(path, tokenizer=Ending(greedy.tokens[0])).stream([7], max_tokens=4, temperature=0)  # type: ignore[arg-type]
    assert "".join(ended) == ""
    assert (ended.stop_reason, ended.tokens) == ("end", [])


def test_rows_of_the_head_without_a_token_are_never_drawn() -> None:
    class Half(type(rookery.tokenizer.Bytes())):  # type: ignore[misc]
        """Bytes, of which only the even ones are tokens."""

        def token_bytes(self, id: int) -> bytes:
            if id % 2:
                raise errors.TokenError(f"{id} is no token")
            return super().token_bytes(id)

    path = FIXTURES / "v7.safetensors"
    for settings in ({"temperature": 0}, {"top_p": 1.0, "seed": 1}):
        stream = rookery.load(path, tokenizer=Half()).stream([7], max_tokens=20, **settings)
        list(stream)
        assert len(stream.tokens) == 20
        assert not any(token % 2 for token in stream.tokens)


def test_no_tokens_asked_for_reads_the_prompt_alone(v7: rookery.Model) -> None:
    stream = v7.stream([1, 2, 3], max_tokens=0)
    assert list(stream) == []
    assert stream.state.delta(v7.forward([1, 2, 3])[1]) == 0


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([], errors.InputError, "empty prompt"),
        ([256], errors.TokenError, "token 256 is outside"),
        ([-1], errors.TokenError, "token -1 is outside"),
        ([1.5], errors.InputError, "whole numbers"),
        ([[1, 2]], errors.InputError, "one list"),
        ([2**70], errors.InputError, "whole numbers"),
        (True, errors.InputError, "whole numbers"),
    ],
)
def test_tokens_that_make_no_sense(v7: rookery.Model, tokens: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        v7.forward(tokens)  # type: ignore[arg-type]


def test_settings_that_make_no_sense(v7: rookery.Model) -> None:
    with pytest.raises(errors.InputError, match="max_tokens"):
        v7.stream("a", max_tokens=-1)
    with pytest.raises(errors.InputError, match="twice"):
        v7.stream("a", sampling=rookery.Sampling(), top_p=0.5)
    with pytest.raises(errors.InputError, match="no sampling setting 'topp'"):
        v7.stream("a", topp=0.5)
    with pytest.raises(errors.InputError, match="states"):
        v7.forward_batch([[1], [2]], [None])
    with pytest.raises(errors.BackendError, match="no back end"):
        rookery.load(FIXTURES / "v7.safetensors", backend="abacus")
    with pytest.raises(errors.BackendError, match="dtype"):
        rookery.load(FIXTURES / "v7.safetensors", dtype="float8")
    with pytest.raises(errors.BackendError, match="device"):
        rookery.load(FIXTURES / "v7.safetensors", backend="reference", device="cuda")


def test_a_model_without_a_known_tokenizer_loads_and_says_so_when_asked() -> None:
    model = rookery.load(FIXTURES / "v7.safetensors")
    model.forward([1, 2])
    with pytest.raises(errors.TokenizerError, match="--tokenizer bytes"):
        _ = model.tokenizer


def test_batches_in_chunks_are_each_alone_to_the_bit(v7: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.model.CHUNK", 4)
    prompts = [[1, 2, 3], list(range(9)), [7], list(range(40, 52))]
    for every in (False, True):
        for prompt, (logits, state) in zip(prompts, v7.forward_batch(prompts, every=every), strict=True):
            alone, after = v7.forward(prompt, every=every)
            assert np.array_equal(logits, alone)
            assert np.array_equal(state.vector(), after.vector())
    assert v7.forward_batch([]) == []


def test_memory_does_not_grow_with_the_text(v7: rookery.Model) -> None:
    def peak(tokens: int) -> int:
        tracemalloc.start()
        for _ in v7.stream([1], max_tokens=tokens, seed=1):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(2000) - peak(200) < 1800 * 64  # the list of ids, and nothing of the model


@pytest.mark.parametrize(("path", "words"), [("goslin", "gosling"), ("https://x.org/m.pth", "download it")])
def test_paths_that_are_none(path: str, words: str) -> None:
    with pytest.raises(errors.MissingFile, match=words):
        rookery.load(path)


@pytest.mark.parametrize(("block", "left"), [(1, "talk.safetensors"), (2, "talk.state"), (3, "")])
def test_the_readmes_python_runs(tmp_path: Path, block: int, left: str) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = readme.split("```python\n")[block].split("```")[0]
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert len(run.stdout) > 20
    assert (tmp_path / left).exists()


def test_the_packaged_model_speaks() -> None:
    model = rookery.load("gosling")
    assert model.config.version == "7"
    assert len(model.generate("Once upon a time", max_tokens=40, seed=1)) >= 20
