"""Pack a trained gosling as the package ships it: Q8_0, its vocabulary and its chat template inside.

python examples/gosling/package.py gosling/run/model.safetensors src/rookery/models/gosling.gguf
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rookery import formats
from rookery.weights.quantise import Plan, quantise

# `User: ...`, a blank line, `Assistant: ...`, a blank line: as in chat.py.
TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    o = parser.parse_args()
    file = formats.read(o.model)
    said = {
        "general.name": "gosling",
        "tokenizer.chat_template": TEMPLATE,
        "rookery.template": "world",  # the same form, without Jinja
        "rookery.stop": "\n\n",  # a reply of gosling is one paragraph
    }
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "gosling.safetensors"
        formats.write(whole, file.tensors, file.metadata | said)
        quantise(whole, o.target, Plan("q8_0"), force=True)
    print(f"wrote {o.target}: {o.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
