"""llama.cpp's tests of its server, run against ours: what its users rely on and no model decides must hold here too.

    python benchmarks/peers/llama_server_tests.py LLAMA_CPP/tools/server/tests [-k EXPRESSION]

The tests are llama.cpp's and stay in its folder. This file is at once the script and the pytest plugin that puts
`rookery serve` on gosling in the place of llama-server. Options that ours has become its options; those that ours
takes with each request (seed, temperature, tokens, thinking) are sent so. Tests are left out by
LEFT_OUT alone, each with its reason; every other one must pass. It needs requests and filelock.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

NAMES = ("gpt-3.5-turbo", "gpt-3.5-turbo-instruct", "gpt-4.1", "davinci-002", "text-embedding-3-small", "codellama70b")
PATIENCE = 60.0  # seconds for a server to be ready

# What the node's id holds -> why it is left out. The first that fits counts.
LEFT_OUT = {
    r"test_compat_anthropic|test_compat_gcp": "APIs of Anthropic and of Google's platform",
    r"test_(router|sleep|proxy|mcp_servers|tools_builtin|stream)\.py|cors_(origins|proxy)": "router, proxy, own tools",
    r"test_vision_api|local_media_file|mtm_error": "images",
    r"test_(lora|speculative|infill|rerank)\.py": "LoRA at run time, drafts, infill, rerank",
    r"test_(ctx_shift|kv_keep_only_active)\.py|unified|context_size|nocache_long|prompt_too_long|prompt_cache": "a "
    "context that can be full, and its cache",
    r"test_slot_save\.py|_slots$|server_props|cancel_request|slots_idle": "slots",
    r"test_chat_completion(\[|_stream|_with_openai|_cached)|test_completion(\[|_stream\[|_(stream_)?with_openai)"
    r"|responses_with_openai|embedding_usage|split_model|multiple_choices": "text and token counts of one model",
    r"test_chat_template|apply_chat_template": "templates by llama.cpp's names, and its debug output",
    r"date_inside": "variables that llama.cpp alone gives to templates",
    r"verbose_debug|return_progress|telemetry|prompt_progress|n_probs_post|response_fields1": "llama.cpp's telemetry "
    "and views of its own",
    r"metrics_(disabled|prometheus|prompt_processed|predicted_total|embedding)": "names of llama.cpp's metrics",
    r"timings_per_token|logprobs_stream|STREAMED": "a first piece that says content null, where OpenAI's says nothing",
    r"test_chat_completion\.py::test_logprobs$": "the blank before a reply, which is a token's but not the message's",
    r"invalid_chat_completion_req\[messages7": "two messages of the assistant at the end, which ours reads",
    r"cors_options": "any origin may call (ours: --cors ORIGIN)",
    r"static_assets|no_ui": "files and options of llama.cpp's own page",
    r"multiple_addresses|aliases_and_tags": "several addresses, tags",
    r"pooling_none": "a vector for each token",
    r"ignore_eos": "ignore_eos",
    r"with_bos": "a token before every text",
}


# The server in the place of llama-server.

_running: dict[tuple[str, ...], tuple[subprocess.Popen[bytes], int]] = {}
_folder = tempfile.TemporaryDirectory()
_left_out: Counter[str] = Counter()


def arguments(asked: Any) -> tuple[str, ...]:
    """The options of `rookery serve` for a test's."""
    names = ",".join([*filter(None, (asked.model_alias or "").split(",")), *NAMES])
    found = ["-m", "gosling", "-t", "1", "--port", "0", "--alias", names]
    if asked.api_key:
        keys = Path(_folder.name, f"{abs(hash(asked.api_key))}.keys")
        keys.write_text(f"{asked.api_key} admin tests\n")
        keys.chmod(0o600)
        found += ["--api-key-file", str(keys)]
    if asked.chat_template_file and not asked.model_alias.endswith("tool-call"):  # there the form of our own model
        found += ["--chat-template", asked.chat_template_file]
    return tuple(found)


def start(self: Any, timeout_seconds: float = PATIENCE) -> None:
    """In the place of ServerProcess.start: servers with the same options are one."""
    options = arguments(self)
    if options not in _running:
        _running[options] = launch(options)
    self.server_port = _running[options][1]
    self.ready = True


def launch(options: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], int]:
    err = Path(_folder.name, f"stderr{len(_running)}")
    command = [sys.executable, "-m", "rookery", "serve", *options, "--store", f"{err}.store", "--log-level", "warning"]
    with err.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    atexit.register(process.kill)
    end = time.monotonic() + PATIENCE
    while not (ready := re.search(r" at http://127\.0\.0\.1:(\d+)\n", err.read_text())):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"rookery serve {' '.join(options)} is not ready: {err.read_text()}")
        time.sleep(0.02)
    return process, int(ready[1])


def with_defaults(send: Any) -> Any:
    """A sending method that adds to a request of llama.cpp's own kind what its server was told at its start."""

    def sent(self: Any, method: str, path: str, data: Any = None, *more: Any, **named: Any) -> Any:
        told: dict[str, Any] = {}
        if path in ("/completion", "/completions"):
            told = {"seed": self.seed, "temperature": self.temperature, "max_tokens": self.n_predict}
        elif path == "/apply-template" and self.reasoning:
            told = {"chat_template_kwargs": {"enable_thinking": self.reasoning != "off"}}
        if isinstance(data, dict):
            data = {name: value for name, value in told.items() if value is not None} | data
        return send(self, method, path, data, *more, **named)

    return sent


# The plugin. The tests' own modules are found in the folder where pytest is started.

sys.modules.setdefault("wget", types.ModuleType("wget"))  # for tests of other models
sys.path.insert(0, os.getcwd())


def pytest_configure(config: pytest.Config) -> None:
    from utils import ServerPreset, ServerProcess  # type: ignore[import-not-found]

    ServerPreset.load_all = staticmethod(lambda: None)
    ServerProcess.start, ServerProcess.stop = start, lambda self: None
    ServerProcess.make_request = with_defaults(ServerProcess.make_request)
    ServerProcess.make_stream_request = with_defaults(ServerProcess.make_stream_request)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = []
    for item in items:
        reason = next((why for what, why in LEFT_OUT.items() if re.search(what, item.nodeid)), None)
        if item.get_closest_marker("slow"):
            reason = "models of billions of parameters"
        if reason is None:
            kept.append(item)
        else:
            _left_out[reason] += 1
    items[:] = kept


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts = {name: len(terminalreporter.stats.get(name, ())) for name in ("passed", "failed", "error", "skipped")}
    terminalreporter.write_line(", ".join(f"{count} {name}" for name, count in counts.items()))
    terminalreporter.write_line(f"{_left_out.total()} left out:")
    for reason, count in _left_out.most_common():
        terminalreporter.write_line(f"  {count:4d}  {reason}")


def main() -> int:
    """Run pytest in the tests' folder with this file as a plugin."""
    if len(sys.argv) < 2 or not Path(sys.argv[1], "utils.py").is_file():
        sys.exit("wanted the folder tools/server/tests of llama.cpp's source")
    here, folder = Path(__file__).resolve(), Path(sys.argv[1]).resolve()
    command = [sys.executable, "-m", "pytest", "-p", here.stem, "-p", "no:cacheprovider", "-q", "--tb=short", "unit"]
    paths = f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with contextlib.suppress(KeyboardInterrupt):
        return subprocess.run([*command, *sys.argv[2:]], cwd=folder, env=os.environ | {"PYTHONPATH": paths}).returncode
    return 130


if __name__ == "__main__":
    sys.exit(main())
