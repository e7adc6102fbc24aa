"""`rookery pull` in a process of its own, against a hub on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from terminal import MODEL, check_mistake, environment, finish, start

from hub_server import COMMIT, Hub, serving

pytest.importorskip("huggingface_hub", reason="needs the extra hf")


def here(tmp_path: Path, hub: Hub, **more: str) -> dict[str, str]:
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {name: value for name, value in environment().items() if not name.startswith("HF_")} | ours | more


def test_pull_and_use(tmp_path: Path) -> None:
    data = Path(MODEL).read_bytes()
    with serving(Hub({"rwkv.safetensors": data}, large=frozenset({"rwkv.safetensors"}))) as hub:
        env = here(tmp_path, hub)
        code, out, err = finish(start("pull", "org/name", env=env))
        assert (code, err) == (0, "")
        path = out.removesuffix("\n")
        assert path == os.path.join(tmp_path, "hub", "models--org--name", "snapshots", COMMIT, "rwkv.safetensors")
        assert Path(path).read_bytes() == data
        code, out, err = finish(start("pull", "--json", "org/name:rwkv.safetensors", env=env))
        assert (code, json.loads(out), err) == (0, {"name": "org/name:rwkv.safetensors", "path": path}, "")
        hub.asked.clear()
        code, out, _ = finish(start("info", "--json", "org/name", env=env))
        assert (code, json.loads(out)["path"]) == (0, path)
        assert hub.asked == []


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with serving(Hub({"a.pth": b"1", "b.pth": b"2"})) as hub:
        env = here(tmp_path, hub)
        check_mistake(finish(start("pull", "org/name", env=env)), "name one: rookery pull org/name:a.pth; rookery pull")
        check_mistake(finish(start("pull", "org/none", env=env)), "no such model on http://127.0.0.1")
        check_mistake(finish(start("pull", "nonsense", env=env)), "is no name on the hub; wanted ORG/NAME")
        hub.wrong["a.pth"] = b"3"
        check_mistake(finish(start("pull", "org/name:a.pth", env=env)), "another checksum")
        offline = here(tmp_path, hub, HF_HUB_OFFLINE="1")
        check_mistake(finish(start("info", "org/name", env=offline)), "unset it and run: rookery pull org/name")
    check_mistake(finish(start("pull", "org/name", env=env)), "does not answer as it should", "HF_ENDPOINT")
