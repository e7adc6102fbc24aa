"""Every route against the document that the server gives of itself: no 5xx, and no answer that it does not describe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis")

from serving import Here

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
)
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
SMALL = {
    "template": "g1",  # it has a form for tools
    "max_prompt_tokens": 2000,
    "max_tokens": 32,
    "default_tokens": 8,
    "body_bytes": 1 << 18,
}
SETTINGS = """
hooks = "HOOKS"
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 413, 414, 415]
"""
WIDTH = 400  # characters of a line of the report


@pytest.fixture(scope="module")
def small(tiny_v7: Any) -> Iterator[Here]:
    with Here(tiny_v7, **SMALL) as made:
        yield made


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The same, but nothing may be answered beside what it describes; requests say themselves that they are open."""
    for shape in document["components"]["schemas"].values():
        if "properties" in shape:
            shape.setdefault("additionalProperties", False)
    return document


def examine(server: Here, folder: Path, *arguments: str) -> None:
    """Run schemathesis; its report is the message of a failure."""
    with server.client() as client:
        document = closed(client.get("/openapi.json").json())
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(SETTINGS.replace("HOOKS", str(HOOKS)))
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", server.url, "--no-color"]
    command += ["--seed", "1", "--generation-deterministic", "--checks", ",".join(CHECKS), *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    report = "\n".join(line[:WIDTH] for line in (found.stdout + found.stderr).splitlines())
    assert found.returncode == 0, report


def test_the_routes_answer_as_the_document_says(small: Here, tmp_path: Path) -> None:
    examine(small, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "10")
