"""Train gander, the small Transformer that the state lab compares gosling with: the same texts, the same vocabulary.

    python examples/gosling/data.py ../shared/data/stories ../shared/data/instruct -o gosling
    python examples/transformer/train.py gosling/train.jsonl -o gander

A Llama of 4 layers, width 128, 4 heads of 32 and a context of 512 tokens. Each token is seen once, in the order of the
file: rows of 512 from the texts laid end to end, token 0 after each. AdamW, warm-up, cosine. Writes a Hugging Face
folder: config.json and model.safetensors, float16. Equal seeds give equal models on equal machines, with one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import rookery

END = 0  # the id after each text
ROW = 512  # tokens read at once; the context
WARM_UP = 100  # steps
RATE, LAST_RATE = 3e-3, 3e-5


def rows(path: Path, count: int) -> torch.Tensor:
    """[count, ROW + 1] token ids: each row's last token is the next row's first."""
    tokenizer = rookery.load("gosling").tokenizer
    ids, needed = [END], count * ROW + 1
    with path.open(encoding="utf-8") as texts:
        for line in texts:
            ids += [*tokenizer.encode(json.loads(line)["text"]), END]
            if len(ids) >= needed:
                break
    if len(ids) < needed:
        raise SystemExit(f"{path}: {len(ids):,} tokens, {needed:,} are wanted; fewer --steps need fewer")
    starts = np.arange(count)[:, None] * ROW
    return torch.from_numpy(np.array(ids)[starts + np.arange(ROW + 1)])


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=ROW,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config).train()


def rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (RATE - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))


def optimiser(of: LlamaForCausalLM) -> torch.optim.AdamW:
    """Matrices decay, norms do not."""
    parts = list(of.parameters())
    groups = [
        {"params": [p for p in parts if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in parts if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def loss_of(of: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean nats a token; products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = of(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def save(trained: LlamaForCausalLM, folder: Path) -> None:
    trained.half().eval().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", type=Path, help='train.jsonl, a {"text": ...} a line')
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1_900, help="(default: 1900)")
    parser.add_argument("--batch", type=int, default=2, help="rows of 512 tokens a step (default: 2)")
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()

    torch.set_num_threads(1)
    data = rows(o.texts, o.steps * o.batch).split(o.batch)
    trained = model(o.seed)
    adam = optimiser(trained)
    size = sum(p.numel() for p in trained.parameters())
    print(f"{size:,} parameters, {o.steps * o.batch * ROW:,} tokens", file=sys.stderr)
    began, losses = time.monotonic(), []
    for step, batch in enumerate(data):
        for group in adam.param_groups:
            group["lr"] = rate(step, o.steps)
        loss = loss_of(trained, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"step {step}: a loss of {losses[-1]}; try a lower rate")
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - began
            pace = (step + 1) * o.batch * ROW / seconds
            recent = sum(losses[-50:]) / 50
            print(f"step {step + 1}: {recent:.3f} nats a token, {pace:,.0f} tokens/s, {seconds:.0f} s", file=sys.stderr)
    save(trained, o.out)
    print(f"wrote {o.out}: {sum(f.stat().st_size for f in o.out.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
