"""Every route against the document that the server gives of itself: no 5xx, and no answer that it does not describe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
KEY = "a-key-for-these-tests"
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


def linked(document: dict[str, Any]) -> dict[str, Any]:
    """The same, told which answers' ids are whose; the id of the response before comes from there alone."""
    del document["components"]["schemas"]["ResponseRequest"]["properties"]["previous_response_id"]
    response, state, head = "$response.body#/id", "$response.body#/rookery/state", "$response.body#/id"
    paths = document["paths"]
    turns, states = [[path for path in paths if path.startswith(f"/v1/{kind}/{{")] for kind in ("responses", "states")]
    for path, targets in {
        "/v1/responses": {response: turns, state: states},
        "/v1/states/{id}/fork": {head: states},
    }.items():
        links = paths[path]["post"]["responses"]["200"].setdefault("links", {})
        for id, there in targets.items():
            links |= {
                f"{method} {target} {id}": {"operationRef": reference(target, method), "parameters": {"id": id}}
                for target in there
                for method in paths[target]
            }
            answer = {"operationRef": reference("/v1/responses", "post"), "requestBody": {"previous_response_id": id}}
            links[f"answer {id}"] = answer
    return document


def reference(path: str, method: str) -> str:
    return f"#/paths/{path.replace('/', '~1')}/{method}"


def examine(server: Here, folder: Path, *arguments: str, checks: Sequence[str] = CHECKS, key: str = "none") -> None:
    """Run schemathesis; its report is the message of a failure."""
    with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
        document = closed(client.get("/openapi.json").json())
    if "stateful" in arguments:
        document = linked(document)
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(SETTINGS.replace("HOOKS", str(HOOKS)))
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", server.url, "--no-color"]
    command += ["--seed", "1", "--generation-deterministic", "--checks", ",".join(checks), *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    report = "\n".join(line[:WIDTH] for line in (found.stdout + found.stderr).splitlines())
    assert found.returncode == 0, report


ROUTES = ("--phases", "examples,coverage,fuzzing")
CHAINS = ("--phases", "stateful", "--mode", "positive", "--include-path-regex", "^/v1/(responses|states)")


def test_the_routes_answer_as_the_document_says(small: Here, tmp_path: Path) -> None:
    examine(small, tmp_path, *ROUTES, "--max-examples", "3")


def test_chains_of_requests_hold_too(small: Here, tmp_path: Path) -> None:
    """What one answers is asked of the next: a response is gone on with, forked, rewound, exported and deleted."""
    examine(small, tmp_path, *CHAINS, "--max-examples", "25")


def test_nothing_is_done_without_the_key_that_the_document_asks_for(tiny_v7: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY} admin tests\n")
    keys.chmod(0o600)
    only = ("--phases", "fuzzing", "--mode", "positive", "--max-examples", "3", "-H", f"Authorization: Bearer {KEY}")
    with Here(tiny_v7, **SMALL, api_key_file=str(keys)) as server:
        examine(server, tmp_path, *only, checks=["ignored_auth"], key=KEY)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "examples"), [(ROUTES, "100"), (CHAINS, "400")])
def test_a_long_examination(small: Here, tmp_path: Path, what: tuple[str, ...], examples: str) -> None:
    examine(small, tmp_path, *what, "--max-examples", examples)
