"""Hugging Face's peft and Trainer take rookery.hf's models as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import rookery
import rookery.hf
from rookery import weights
from rookery.hf import RwkvForCausalLM
from rookery.weights import adapters
from tolerances import LOGITS_RANDOM

# peft 0.21 asks transformers 5.23 by names that the latter gives up
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

Folder = Callable[[str], Path]
LINEARS = ["receptance", "key", "value", "output"]
TEXT = torch.tensor([list(b"the goose and the goose and the goose")])


def tuned(path: Path, **settings: Any) -> tuple[Any, list[float]]:
    """A model with a LoRA that has learnt a few steps, and its losses."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(RwkvForCausalLM.from_pretrained(path), config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model.train()(input_ids=TEXT, labels=TEXT).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return model.eval(), losses


def logits_of(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=TEXT).logits[0].numpy()


@pytest.mark.parametrize("name", ["v4", "v5.2", "v6", "v7"])
def test_a_lora_is_trained_saved_and_opened(name: str, folder: Folder, tmp_path: Path) -> None:
    model, losses = tuned(folder(name), target_modules=LINEARS)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5
    names = [key for key, p in model.named_parameters() if p.requires_grad]
    assert "base_model.model.blocks.1.att.key.lora_A.default.weight" in names
    assert all("lora_" in key for key in names)

    model.save_pretrained(tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(folder(name))
    wanted = logits_of(model)
    again = peft.PeftModel.from_pretrained(RwkvForCausalLM.from_pretrained(folder(name)), tmp_path / "adapter").eval()
    np.testing.assert_array_equal(logits_of(again), wanted)
    np.testing.assert_array_equal(logits_of(RwkvForCausalLM.from_pretrained(tmp_path / "adapter")), wanted)
    assert torch.equal(
        again.generate(input_ids=TEXT, do_sample=False, max_new_tokens=4),
        model.generate(input_ids=TEXT, do_sample=False, max_new_tokens=4),
    )

    base, ids = weights.load(folder(name)), TEXT[0].tolist()
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = adapters.merged(base, adapters.load(tmp_path / "adapter"))
    for found in (weights.load(tmp_path / "merged"), merged):
        run = rookery.Model(found, rookery.backends.runner(found, "reference"))
        assert np.abs(run.forward(ids, every=True)[0] - wanted).max() <= LOGITS_RANDOM


def test_all_linears_but_the_head(folder: Folder, tmp_path: Path) -> None:
    model, losses = tuned(folder("v7"), target_modules="all-linear")
    assert losses[-1] < losses[0]
    assert len(model.targeted_module_names) == 3 * 6
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), logits_of(model))


def test_embedding_and_head_too(folder: Folder) -> None:
    model, losses = tuned(folder("v7"), target_modules=["emb", "head"])
    assert losses[-1] < losses[0]
    learnt = {key.split(".")[2] for key, p in model.named_parameters() if p.requires_grad}
    assert learnt == {"emb", "head"}


def test_an_epoch_of_transformers_trainer(folder: Folder, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder("v7"))
    rows = [tokenizer(f"a goose and {'a goose ' * (i % 3)}") for i in range(20)]
    settings = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, learning_rate=1e-2,
        eval_strategy="epoch", save_strategy="epoch", logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip

    def trainer() -> Any:
        return Trainer(
            model=AutoModelForCausalLM.from_pretrained(folder("v7")),
            args=settings,
            train_dataset=rows,
            eval_dataset=rows[:4],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            processing_class=tokenizer,
        )

    first = trainer()
    first.train()
    losses = [entry["loss"] for entry in first.state.log_history if "loss" in entry]
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 0.5
    wanted = logits_of(first.model.eval())
    saved = rookery.load(tmp_path / "checkpoint-5", backend="reference")
    assert np.abs(saved.forward(TEXT[0].tolist(), every=True)[0] - wanted).max() <= LOGITS_RANDOM
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    np.testing.assert_array_equal(logits_of(resumed.model.eval()), wanted)
