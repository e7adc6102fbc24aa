"""rookery.hf reads and writes on: equal to our engine, padded rows equal to themselves alone, states passed along."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

import rookery
import rookery.hf
from rookery import errors
from rookery.hf import RwkvCache, RwkvForCausalLM
from tolerances import GRADIENT_CHUNKED, LOGITS_CHUNKED, LOGITS_RANDOM, STATE_CHUNKED

Folder = Callable[[str], Path]
EVERY = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
TEXTS = [list(b"Once upon a time there was"), list(b"A goose"), list(b"x")]
LONG = len(TEXTS[0])
PAD = 999  # of no vocabulary here: a masked token is not even looked up
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture
def model(request: pytest.FixtureRequest, folder: Folder) -> Iterator[Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield RwkvForCausalLM.from_pretrained(folder(getattr(request, "param", "v7")))


every_version = pytest.mark.parametrize("model", EVERY, indirect=True)


def padded(side: str) -> tuple[Any, Any]:
    """The three texts as a batch, padded at the left, the right, or anywhere; and the mask."""
    ids, mask = torch.full((3, LONG), PAD), torch.zeros(3, LONG, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        places = {
            "left": range(LONG - len(text), LONG),
            "right": range(len(text)),
            "anywhere": sorted(np.random.default_rng(row).permutation(LONG)[: len(text)]),
        }
        ids[row, list(places[side])] = torch.tensor(text)
        mask[row, list(places[side])] = 1
    return ids, mask


def check_states(found: RwkvCache, row: int, alone: RwkvCache) -> None:
    assert found.states
    assert alone.states
    for mine, true in zip(found.states, alone.states, strict=True):
        for name, piece in true.items():
            assert (mine[name][row] - piece[0]).abs().max() <= STATE_CHUNKED * piece.abs().max(), name


# -- generate() --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EVERY, "gosling"])
def test_greedy_is_our_engines(name: str, folder: Folder) -> None:
    ids = rookery.load(folder(name)).tokenizer.encode("Once upon a time there")
    stream = rookery.load(folder(name)).stream(ids, max_tokens=24, temperature=0.0)
    list(stream)
    made = RwkvForCausalLM.from_pretrained(folder(name)).generate(
        torch.tensor([ids]), max_new_tokens=24, do_sample=False
    )
    assert made[0, len(ids) :].tolist() == stream.tokens
    assert len(stream.tokens) == 24


def test_the_usual_snippet(folder: Folder) -> None:
    path = folder("gosling")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto", device_map="auto", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
    out = model.generate(**inputs, max_new_tokens=50, temperature=0.8, top_p=0.9, do_sample=True)
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    assert text.startswith("Once upon a time")
    assert len(text) > 100


def test_a_talk(folder: Folder) -> None:
    model, tokenizer = (c.from_pretrained(folder("gosling")) for c in (AutoModelForCausalLM, AutoTokenizer))
    talk = [{"role": "user", "content": "Who are you?"}]
    inputs = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False, stop_strings=["\n\n"], tokenizer=tokenizer)
    reply = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    stream = rookery.load(folder("gosling")).stream(
        "User: Who are you?\n\nAssistant:", max_tokens=40, temperature=0.0, stop=["\n\n"]
    )
    assert reply.rstrip("\n") == "".join(stream)


def test_a_padded_batch_writes_what_each_row_writes_alone(folder: Folder) -> None:
    model, tokenizer = (c.from_pretrained(folder("gosling")) for c in (AutoModelForCausalLM, AutoTokenizer))
    texts = ["Once upon a time", "The king", "A goose said to the other goose"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    made = tokenizer.batch_decode(model.generate(**batch, **GREEDY), skip_special_tokens=True)
    alone = [model.generate(**tokenizer(text, return_tensors="pt"), **GREEDY) for text in texts]
    assert made == [tokenizer.decode(out[0], skip_special_tokens=True) for out in alone]


@every_version
def test_ways_to_the_same_tokens(model: Any) -> None:
    ids = torch.tensor(TEXTS[:1])
    greedy = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, use_cache=False, **GREEDY), greedy)
    vectors = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=vectors, **GREEDY), greedy[:, LONG:])
    few = model.generate(ids, do_sample=False, max_new_tokens=5, return_dict_in_generate=True)
    kept = copy.deepcopy(few.past_key_values)
    more = model.generate(few.sequences, past_key_values=few.past_key_values, do_sample=False, max_new_tokens=7)
    assert torch.equal(more, greedy)
    check_states(few.past_key_values, 0, kept)


def test_a_state_is_where_a_prompt_begins(model: Any) -> None:
    first, rest = (torch.tensor([text]) for text in TEXTS[:2])
    wanted = model.generate(torch.cat([first, rest], 1), **GREEDY)[:, LONG:]
    few = model.generate(
        rest, state=model(first).state, do_sample=False, max_new_tokens=5, return_dict_in_generate=True
    )
    more = model.generate(few.sequences, past_key_values=few.past_key_values, do_sample=False, max_new_tokens=7)
    assert torch.equal(few.sequences, wanted[:, : rest.shape[1] + 5])
    assert torch.equal(more, wanted)


@every_version
def test_beams_and_several_sequences(model: Any) -> None:
    ids, beams = torch.tensor(TEXTS[:1] * 2), {"num_beams": 3, "num_return_sequences": 2, **GREEDY}
    made = model.generate(ids, **beams)
    assert made.shape == (4, LONG + 12)
    assert torch.equal(made, model.generate(ids, use_cache=False, **beams))
    drawn = model.generate(ids[:1], do_sample=True, num_return_sequences=3, max_new_tokens=12)
    assert len({tuple(row) for row in drawn.tolist()}) == 3


def test_a_state_of_rookery(folder: Folder) -> None:
    engine = rookery.load(folder("gosling"), backend="reference")
    model = RwkvForCausalLM.from_pretrained(folder("gosling"))
    _, state = engine.forward(engine.tokenizer.encode("Once upon a"))
    wanted, _ = engine.forward(99, state)
    found = model(torch.tensor([[99], [99]]), state=state).logits[:, -1].detach().numpy()
    assert np.abs(found - wanted).max() <= LOGITS_RANDOM
    stream = engine.stream([99], max_tokens=12, temperature=0.0, state=state)
    list(stream)
    assert model.generate(torch.tensor([[99]]), state=state, **GREEDY)[0, 1:].tolist() == stream.tokens


def test_what_a_recurrent_state_cannot_do(model: Any, folder: Folder) -> None:
    ids = torch.tensor(TEXTS[:1])
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=3)
    cache = model(ids).past_key_values
    with pytest.raises(errors.InputError, match="cannot forget"):
        cache.crop(3)
    with pytest.raises(errors.InputError, match="batch_repeat_interleave"):
        model(ids.repeat(2, 1), past_key_values=cache)
    with pytest.raises(errors.InputError, match="tuple"):
        model(ids, past_key_values=((ids, ids),))
    other = RwkvForCausalLM.from_pretrained(folder("v6"))(ids).past_key_values
    with pytest.raises(errors.StateError):
        model(ids, past_key_values=other)
    with pytest.raises(errors.StateError):
        model(ids, state=rookery.load("gosling").state())


# -- forward() ---------------------------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "anywhere"])
def test_a_padded_row_is_what_it_is_alone(side: str, before: bool, model: Any) -> None:
    ids, mask = padded(side)
    read = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    with torch.no_grad():
        past = model(read).past_key_values if before else None
        out = model(ids, attention_mask=mask, past_key_values=past)
        for row, text in enumerate(TEXTS):
            past = model(read[row : row + 1]).past_key_values if before else None
            alone = model(torch.tensor([text]), past_key_values=past)
            found = out.logits[row][mask[row].bool()]
            assert (found - alone.logits[0]).abs().max() <= LOGITS_CHUNKED
            check_states(out.state, row, alone.state)


@every_version
def test_a_row_that_is_all_padding_keeps_its_state(model: Any) -> None:
    ids, mask = padded("left")
    mask[1] = 0
    with torch.no_grad():
        past = model(torch.tensor([[5], [6], [7]])).past_key_values
        check_states(model(ids, attention_mask=mask, past_key_values=past).state, 1, _row(past, 1))
        fresh = model(ids, attention_mask=mask).state
        assert (
            model(torch.tensor(TEXTS[:1] * 3), past_key_values=fresh).logits[1]
            - model(torch.tensor(TEXTS[:1])).logits[0]
        ).abs().max() <= LOGITS_CHUNKED
    with pytest.raises(errors.InputError, match="every token"):
        model(ids, attention_mask=mask * 0)


def _row(cache: RwkvCache, row: int) -> RwkvCache:
    cache = copy.deepcopy(cache)
    cache.batch_select_indices(torch.tensor([row]))
    return cache


@every_version
def test_gradients_of_a_padded_batch(model: Any) -> None:
    ids, mask = padded("right")
    labels = ids.masked_fill(mask == 0, -100)
    count = sum(len(text) - 1 for text in TEXTS)
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for text in TEXTS[:2]:  # the third has nothing to foretell
        alone = model(torch.tensor([text]), labels=torch.tensor([text])).loss
        (alone * (len(text) - 1) / count).backward()
    for name, p in model.named_parameters():
        assert (found[name] - p.grad).norm() <= GRADIENT_CHUNKED * p.grad.norm(), name


def test_what_forward_gives(model: Any) -> None:
    ids = torch.tensor(TEXTS[:1] * 2)
    labels = ids.clone()
    labels[0, :9] = -100
    out = model(ids, labels=labels, output_hidden_states=True)
    wanted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert out.loss.item() == pytest.approx(wanted.item())
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.head(out.hidden_states[-1]), out.logits)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model(inputs_embeds=out.hidden_states[0]).logits, out.logits)
    assert torch.equal(model(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, out.logits[:, [0, 4]])
    assert torch.equal(model(ids, return_dict=False)[0], out.logits)
    assert model(ids, use_cache=False).state is None
    with pytest.raises(errors.InputError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(errors.InputError, match="at least one"):
        model(ids[:, :0])
    with pytest.raises(errors.InputError, match="attention_mask"):
        model(ids, attention_mask=torch.ones(2, 3))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_prompt_is_read_in_parts(side: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = padded(side)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask)
        monkeypatch.setattr(rookery.hf.model, "CHUNK", 4)
        calls: list[int] = []
        model.blocks[0].register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[1]))
        parts = model(ids, attention_mask=mask)
    assert calls == [4] * 6 + [2]
    assert (parts.logits - whole.logits).abs().max() <= LOGITS_CHUNKED
    for row in range(3):
        check_states(parts.state, row, _row(whole.state, row))


def test_documents_in_one_row(model: Any) -> None:
    text = torch.tensor([TEXTS[0] + TEXTS[1]])
    places = torch.tensor([[*range(LONG), *range(len(TEXTS[1]))]])
    found = model(text.repeat(2, 1), position_ids=places).logits[1, LONG:]
    assert (found - model(torch.tensor(TEXTS[1:2])).logits[0]).abs().max() <= LOGITS_CHUNKED
    assert (found - model(text).logits[0, LONG:]).abs().max() > LOGITS_CHUNKED


@every_version
def test_recomputation_changes_nothing(model: Any) -> None:
    ids, calls = torch.tensor(TEXTS[:1]), [0]
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    model.train()
    made = []
    for recompute in (False, True):
        if recompute:
            model.activation_checkpointing_enable()
        model.zero_grad()
        calls[0] = 0
        loss = model(ids, labels=ids).loss
        loss.backward()
        assert calls[0] == 1 + recompute
        made.append((loss.item(), model.blocks[0].att.key.weight.grad.clone()))
    assert made[0][0] == made[1][0]
    assert torch.equal(made[0][1], made[1][1])
