"""The Transformer substrate against the same model read in one piece, and what a perturbation of it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import (
    DamagedFile,
    InputError,
    MissingExtra,
    MissingFile,
    MissingTensor,
    ModelError,
    StateError,
    TokenError,
    UnknownFormat,
)
from rookery.lab.substrates import Substrate, make
from rookery.lab.substrates.transformer import Transformer, folder
from rookery.sampling import Sampling
from tolerances import LOGITS_CHUNKED, STATE_CHUNKED

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed (the extra rookery[transformers])"
)
TOKENS = [3, 17, 60, 5, 5, 41, 0, 22, 9, 31]
CONTEXT = 16
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": CONTEXT,
    },
    "gpt2": {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": CONTEXT},
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def random_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough for layers to matter; token 1 begins a text."""
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return build("llama", tmp_path / "llama")


def build(kind: str, target: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(
        kind, vocab_size=64, bos_token_id=1, eos_token_id=1, initializer_range=0.3, **SHAPES[kind]
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    return target


def in_one_piece(path: Path, tokens: list[int]) -> tuple[Any, list[Any]]:
    """Logits [T, V] and what leaves each layer but the last [T, C], without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        out = net(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return out.logits[0].numpy(), [rows[0].numpy() for rows in out.hidden_states[1:-1]]


def run(substrate: Transformer, tokens: list[int]) -> None:
    for token in tokens:
        substrate.step(token)


def same(one: Transformer, other: Transformer) -> bool:
    mine, theirs = one.components(), other.components()
    alike = all(np.array_equal(mine[name], theirs[name]) for name in mine)
    return alike and np.array_equal(one.logits(), other.logits())


@needs_transformers
class TestSteps:
    def test_logits_and_residuals_are_those_of_the_model_read_in_one_piece(self, random_folder: Path) -> None:
        logits, layers = in_one_piece(random_folder, [1, *TOKENS])
        substrate = Transformer(random_folder)
        assert isinstance(substrate, Substrate)
        for t, token in enumerate(TOKENS, 1):
            substrate.step(token)
            assert np.abs(substrate.logits() - logits[t]).max() < LOGITS_CHUNKED
            found = substrate.components()
            assert list(found) == ["layers.0.resid", "layers.1.resid", "layers.2.resid"]
            for i, rows in enumerate(layers):
                assert np.abs(found[f"layers.{i}.resid"] - rows[t]).max() < STATE_CHUNKED * np.abs(rows[t]).max()
        assert substrate.tick == len(TOKENS)
        assert substrate.last == TOKENS[-1]

    def test_the_last_residual_is_the_one_the_head_reads(self, llama: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        net = AutoModelForCausalLM.from_pretrained(llama).eval()
        substrate = Transformer(llama)
        run(substrate, TOKENS)
        with torch.no_grad():
            read = net.lm_head(net.model.norm(torch.from_numpy(substrate.components()["layers.2.resid"])))
        assert np.abs(read.numpy() - substrate.logits()).max() < LOGITS_CHUNKED

    def test_greedy_takes_the_likeliest_token_each_time(self, random_folder: Path) -> None:
        substrate, drawn = Transformer(random_folder), []
        for _ in range(8):
            substrate.step()
            drawn.append(substrate.last)
        logits, _ = in_one_piece(random_folder, [1, *drawn])
        assert drawn == logits[:-1].argmax(1).tolist()

    def test_seeds_give_equal_or_different_draws(self, llama: Path) -> None:
        substrate = Transformer(llama, Sampling(temperature=1, top_p=1))

        def draws(seed: int) -> list[int | None]:
            substrate.reset(seed)
            found = []
            for _ in range(12):
                substrate.step()
                found.append(substrate.last)
            return found

        assert draws(1) == draws(1) != draws(2)

    def test_reset_forgets_everything(self, llama: Path) -> None:
        used, fresh = Transformer(llama), Transformer(llama)
        run(used, TOKENS)
        used.perturb("layers.0.resid", np.ones(32), 1.0)
        used.reset()
        assert same(used, fresh)
        run(used, TOKENS[:3])
        run(fresh, TOKENS[:3])
        assert same(used, fresh)
        assert used.tick == 3

    def test_torch_s_threads_are_its_own_while_it_reads_alone(self, llama: Path) -> None:
        import torch

        before = torch.get_num_threads()
        substrate, seen = Transformer(llama, threads=before + 1), []
        substrate._net.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        substrate.step(5)
        assert seen == [before + 1]
        assert torch.get_num_threads() == before

    def test_what_is_given_out_are_copies(self, llama: Path) -> None:
        used, fresh = Transformer(llama), Transformer(llama)
        used.components()["layers.0.resid"][:] = 9
        used.logits()[:] = 9
        assert same(used, fresh)


@needs_transformers
class TestSnapshots:
    def test_a_restored_run_goes_on_bit_for_bit(self, random_folder: Path) -> None:
        """The draws, the cache and a perturbation that waits for its step are all in it."""
        substrate = Transformer(random_folder, Sampling(temperature=1, top_p=1))
        run(substrate, TOKENS[:4])
        substrate.step()
        substrate.perturb("layers.1.resid", np.arange(32.0), 0.5)
        kept = substrate.snapshot()
        runs = []
        for _ in range(2):
            trail = []
            for _ in range(6):
                substrate.step()
                trail.append((substrate.last, substrate.logits().tobytes(), substrate.components()))
            runs.append(trail)
            substrate.restore(kept)
        assert substrate.tick == 5
        for one, other in zip(*runs, strict=True):
            assert one[:2] == other[:2]
            assert all(np.array_equal(one[2][name], other[2][name]) for name in one[2])

    def test_it_can_be_restored_elsewhere(self, llama: Path) -> None:
        one, other = Transformer(llama), Transformer(llama)
        run(one, TOKENS[:6])
        other.restore(one.snapshot())
        run(one, TOKENS[6:])
        run(other, TOKENS[6:])
        assert same(one, other)

    def test_another_models_is_refused(self, llama: Path, tmp_path: Path) -> None:
        other = Transformer(build("gpt2", tmp_path / "other"))
        with pytest.raises(StateError, match="not a snapshot of the Transformer"):
            other.restore(Transformer(llama).snapshot())
        with pytest.raises(StateError, match="of a dict"):
            other.restore({})


@needs_transformers
class TestPerturbations:
    """Layer 1 of 3 is pushed before the step that reads TOKENS[4]; `plain` is not."""

    def pair(self, path: Path, component: str = "layers.1.resid") -> tuple[Transformer, Transformer, Any]:
        plain, pushed = Transformer(path), Transformer(path)
        for substrate in (plain, pushed):
            run(substrate, TOKENS[:4])
        row = pushed.components()[component].astype(np.float64)
        direction = np.random.default_rng(1).standard_normal(32)
        pushed.perturb(component, direction, 0.25)
        by = direction / np.linalg.norm(direction) * 0.25 * np.linalg.norm(row)
        return plain, pushed, by.astype(np.float32)

    def test_it_shows_after_the_next_step_in_its_layer_and_above(self, random_folder: Path) -> None:
        plain, pushed, by = self.pair(random_folder)
        assert same(plain, pushed)
        run(plain, TOKENS[4:5])
        run(pushed, TOKENS[4:5])
        before, after = plain.components(), pushed.components()
        assert np.array_equal(after["layers.0.resid"], before["layers.0.resid"])
        assert np.array_equal(after["layers.1.resid"], before["layers.1.resid"] + by)
        assert not np.array_equal(after["layers.2.resid"], before["layers.2.resid"])
        assert not np.array_equal(pushed.logits(), plain.logits())

    def test_one_step_later_it_is_left_in_the_cache_of_the_layers_above_alone(self, random_folder: Path) -> None:
        plain, pushed, _ = self.pair(random_folder)
        for token in TOKENS[4:]:
            plain.step(token)
            pushed.step(token)
            before, after = plain.components(), pushed.components()
            if plain.tick > 5:
                assert np.array_equal(after["layers.0.resid"], before["layers.0.resid"])
                assert np.array_equal(after["layers.1.resid"], before["layers.1.resid"])
                assert not np.array_equal(after["layers.2.resid"], before["layers.2.resid"])

    def test_after_the_last_layer_nothing_is_left(self, random_folder: Path) -> None:
        plain, pushed, _ = self.pair(random_folder, "layers.2.resid")
        run(plain, TOKENS[4:5])
        run(pushed, TOKENS[4:5])
        assert not np.array_equal(pushed.logits(), plain.logits())
        run(plain, TOKENS[5:6])
        run(pushed, TOKENS[5:6])
        assert same(plain, pushed)

    def test_two_add_up(self, llama: Path) -> None:
        plain, pushed, by = self.pair(llama)
        pushed.perturb("layers.1.resid", by, 0.0)
        pushed.perturb("layers.1.resid", -by, 0.25)
        run(plain, TOKENS[4:5])
        run(pushed, TOKENS[4:5])
        assert same(plain, pushed)

    def test_what_makes_no_sense_is_refused(self, llama: Path) -> None:
        substrate = Transformer(llama, prefix=())
        with pytest.raises(InputError, match="nothing was read yet"):
            substrate.perturb("layers.1.resid", np.ones(32), 0.1)
        substrate.step(3)
        with pytest.raises(InputError, match=r"component .layers\.1\.wkv.: wanted one of layers\.0\.resid"):
            substrate.perturb("layers.1.wkv", np.ones(32), 0.1)
        with pytest.raises(InputError, match=r"direction has shape \(31,\)"):
            substrate.perturb("layers.1.resid", np.ones(31), 0.1)


@needs_transformers
class TestContext:
    def test_a_full_one_says_so_and_stays_as_it_is(self, random_folder: Path) -> None:
        substrate = Transformer(random_folder, Sampling(temperature=1))
        assert substrate.context == CONTEXT
        run(substrate, [5] * (CONTEXT - 1))
        before = substrate.snapshot()
        for token in (5, None):
            with pytest.raises(InputError, match=r"context of 16 tokens is full at tick 15 .* when_full='restart'"):
                substrate.step(token)
        after = substrate.snapshot()
        assert (after.tick, after.read, after.sampler) == (15, before.read, before.sampler)
        assert np.array_equal(after.logits, before.logits)

    def test_a_restart_warns_and_goes_on_from_the_newer_half(self, random_folder: Path) -> None:
        tokens = [(7 * i) % 64 for i in range(CONTEXT)]
        substrate = Transformer(random_folder, when_full="restart")
        run(substrate, tokens[:-1])
        with pytest.warns(UserWarning, match="full at tick 15; restarted from the last 8"):
            substrate.step(tokens[-1])
        fresh = Transformer(random_folder, prefix=tokens[-9:-1])
        fresh.step(tokens[-1])
        assert same(substrate, fresh)
        assert (substrate.tick, substrate.restarts) == (CONTEXT, 1)

    def test_a_prefix_longer_than_it_is_refused(self, llama: Path) -> None:
        with pytest.raises(InputError, match="a prefix of 17 tokens does not fit a context of 16"):
            Transformer(llama, prefix=[1] * 17)


@needs_transformers
class TestFolders:
    def test_a_missing_tensor_is_no_random_one(self, llama: Path) -> None:
        from safetensors.numpy import load_file, save_file

        file = llama / "model.safetensors"
        tensors = load_file(file)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(MissingTensor, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight \(of 1 "):
            Transformer(llama)

    def test_cut_short(self, llama: Path) -> None:
        file = llama / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DamagedFile, match="cannot be read"):
            Transformer(llama)

    @pytest.mark.parametrize("kind", ["llama", "of_its_own"])
    def test_code_in_a_folder_is_not_run(self, llama: Path, kind: str) -> None:
        (llama / "own.py").write_text(f"open({str(llama / 'ran')!r}, 'w')\nclass Config: pass\nclass Net: pass\n")
        config = json.loads((llama / "config.json").read_text())
        config |= {"model_type": kind, "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Net"}}
        (llama / "config.json").write_text(json.dumps(config))
        if kind == "llama":
            assert Transformer(llama).vocab == 64
        else:
            with pytest.raises(ModelError, match="reads no causal language model there"):
                Transformer(llama)
        assert not (llama / "ran").exists()

    def test_the_fingerprint_is_of_the_weights(self, llama: Path) -> None:
        first = Transformer(llama).fingerprint
        file = llama / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
        assert Transformer(llama).fingerprint != first

    @pytest.mark.parametrize("token", [64, -1, True, 1.0, "a"])
    def test_no_token(self, llama: Path, token: Any) -> None:
        with pytest.raises(TokenError, match="outside the vocabulary, 0 to 63"):
            Transformer(llama).step(token)

    def test_without_a_prefix_there_is_nothing_to_draw_from(self, llama: Path) -> None:
        substrate = Transformer(llama, prefix=())
        assert substrate.logits() is None
        with pytest.raises(InputError, match="nothing was read yet"):
            substrate.step()


@needs_transformers
def test_gander_has_learnt_gosling_s_vocabulary() -> None:
    """Any mix-up of ids or weights brings the loss to the 8.3 nats of a guess among 4,096, or above."""
    substrate = make("transformer")
    assert isinstance(substrate, Transformer)
    nats = []
    for token in rookery.load("gosling").tokenizer.encode("Once upon a time there was a king who had three sons."):
        logits = substrate.logits().astype(np.float64)
        nats.append(np.logaddexp.reduce(logits) - logits[token])
        substrate.step(token)
    assert np.mean(nats) < 4.5


def test_gander_lies_in_the_package() -> None:
    path = folder("gander")
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    assert sum(file.stat().st_size for file in path.iterdir()) < 3_000_000


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_a_missing_extra_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra, match=r"a Transformer substrate needs .*pip install 'rookery\[transformers\]'"):
        Transformer()


def test_importing_it_needs_neither() -> None:
    code = "import sys, rookery.lab.substrates.transformer; print(*{'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


class TestWrongFolders:
    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFile, match="no such folder; wanted 'gander' or a Hugging Face folder"):
            Transformer(tmp_path / "none")

    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFile, match=r"config\.json: no such file"):
            Transformer(tmp_path)

    def test_pickled_weights(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
        with pytest.raises(UnknownFormat, match="weights in pickles are not read"):
            Transformer(tmp_path)

    def test_a_config_that_is_no_json(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(DamagedFile, match="is no JSON"):
            Transformer(tmp_path)

    def test_a_setting(self) -> None:
        with pytest.raises(InputError, match="when_full='slide': wanted one of stop, restart"):
            Transformer(when_full="slide")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="its settings are model, sampling, prefix, when_full, threads"):
            make("transformer", temperature=1)
        with pytest.raises(InputError, match="threads=0: wanted a whole number of 1 or more"):
            Transformer(threads=0)
