"""`rookery serve` as a command: its flags, its settings, and what it says where its parts are not installed.

What a running server does is in tests/server.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("fastapi")

from rookery.cli import serve
from rookery.cli.main import main
from rookery.server.settings import Settings


def settings(*args: str) -> Settings:
    made: Settings = serve._settings(serve.parser().parse_args(args), {})
    return made


FLAGS = """--host 0.0.0.0 --port 0 --store S --half --alias A --chat-template g1 --api-key-file K --max-batch 3
--max-waiting 4 --drain 5 --records --cors https://a.example --cors http://b.example:3000"""


def test_flags_become_settings() -> None:
    assert settings(*FLAGS.split()) == Settings(
        host="0.0.0.0",
        port=0,
        store="S",
        half=True,
        alias="A",
        template="g1",
        api_key_file="K",
        max_batch=3,
        max_waiting=4,
        drain_seconds=5,
        records=True,
        cors=("https://a.example", "http://b.example:3000"),
    )


def test_the_usual_is_what_scripts_rely_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    made = settings()
    assert made == Settings(store="/data/rookery/serve")
    assert (made.host, made.port, made.insecure, made.cors) == ("127.0.0.1", 8000, False, ())


@pytest.mark.parametrize("origin", ["*", "page.example", "https://page.example/", "https://*.example", "null", ""])
def test_what_is_no_origin(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--cors", origin]) == 2
    assert "https://chat.example" in capsys.readouterr().err


def test_without_its_parts_it_names_the_extra() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from rookery.cli.main import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == "rookery: serving needs an optional part: pip install 'rookery[serve]'\n"


@pytest.mark.parametrize("key", ["", "short", "two words of a key"])
def test_a_key_that_is_none(key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(key + "\n"))
    assert main(["serve", "--hash-key"]) == 2
    assert "wanted a key" in capsys.readouterr().err
