"""What is counted, under which names, and that a scrape never fails with the store."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from serving import Here, wait_for

from rookery.errors import StoreError
from rookery.server.metrics import Metrics

REPLY = {"prompt": "Hello", "max_tokens": 5, "seed": 1, "logit_bias": {"0": -100}}


def samples(text: str) -> dict[str, float]:
    """Name with labels -> value."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items()) if key != "le"): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def scraped(here: Here) -> dict[str, float]:
    with here.client() as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


def test_a_reply_is_counted(serving: Callable[..., Here]) -> None:
    here = serving()
    before = scraped(here)
    with here.client() as client:
        for _ in range(2):
            assert client.post("/v1/completions", json=REPLY).status_code == 200
    after = wait_for(lambda: (found := scraped(here)).get("rookery_replies_total reason=length") == 2 and found)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert grown["rookery_requests_total method=POST route=/v1/completions status=200"] == 2
    assert grown["rookery_request_seconds_count route=/v1/completions"] == 2
    assert grown["rookery_first_token_seconds_count"] == 2
    assert grown["rookery_queue_seconds_count"] == 2
    assert grown["rookery_between_tokens_seconds_count"] == 2 * 4
    assert grown["rookery_prompt_tokens_total"] == 2 * 5
    assert grown["rookery_engine_tokens_written_total"] == 2 * 5
    assert grown["rookery_engine_steps_total"] > 0
    assert after["rookery_engine_running"] == after["rookery_engine_waiting"] == 0
    assert after["rookery_state_bytes"] == here.service.model.state().flat.nbytes
    for name in ("snapshots", "bytes", "hits_total", "misses_total", "evicted_total", "up"):
        assert f"rookery_store_{name}" in after
    for name in ("bytes", "hits_total", "misses_total"):
        assert f"rookery_prefixes_{name}" in after


def test_routes_are_counted_by_their_pattern(serving: Callable[..., Here]) -> None:
    here = serving()
    with here.client() as client:
        for n in range(5):
            client.get(f"/no/such/{n}")
            client.get(f"/v1/models/{n}")
    none = "rookery_requests_total method=GET route=none status=404"
    found = wait_for(lambda: (now := scraped(here)).get(none) == 5 and now)
    routes = {match[1] for name in found if (match := re.search(r" route=(\S+)", name))}
    assert not any(re.search(r"/\d", route) for route in routes)


def test_methods_that_nobody_knows_are_counted_as_one(serving: Callable[..., Here]) -> None:
    here = serving()
    with here.client() as client:
        for n in range(5):
            assert client.request(f"ODD{n}", "/health").status_code == 405
    other = "rookery_requests_total method=other route=/health status=405"
    assert wait_for(lambda: scraped(here).get(other) == 5)
    assert "ODD" not in str(scraped(here))


def test_requests_in_flight(serving: Callable[..., Here]) -> None:
    here = serving()
    request = REPLY | {"max_tokens": 100_000, "stream": True}
    with here.client() as client, client.stream("POST", "/v1/completions", json=request) as answer:
        pieces = answer.iter_text()
        next(pieces)
        found = scraped(here)
        assert found["rookery_requests_in_flight"] == 2  # that one, and the scrape
        assert found["rookery_engine_running"] == 1
    wait_for(lambda: scraped(here).get("rookery_replies_total reason=cancelled") == 1)
    assert scraped(here)["rookery_requests_in_flight"] == 1


def test_a_store_that_does_not_answer_spoils_no_scrape(serving: Callable[..., Here]) -> None:
    here = serving()

    def stats() -> Any:
        raise StoreError("gone")

    metrics = Metrics()
    metrics.watch(1, store=stats, engine=here.service.engine.stats)
    found = samples(metrics.text().decode())
    assert found["rookery_store_up"] == 0
    assert found["rookery_engine_up"] == 1
    assert "rookery_engine_running" in found


def test_the_times_of_one_sequence() -> None:
    metrics = Metrics()
    clock = metrics.sequence()
    for event in (clock.read, clock.read, clock.wrote, clock.wrote, clock.wrote):
        event()
    clock.ended("stop")
    found = samples(metrics.text().decode())
    counts = {name: found[f"rookery_{name}_seconds_count"] for name in ("queue", "first_token", "between_tokens")}
    assert counts == {"queue": 1, "first_token": 1, "between_tokens": 2}
    assert found["rookery_replies_total reason=stop"] == 1


def test_a_sequence_that_reads_nothing_has_waited_all_the_same() -> None:
    metrics = Metrics()
    metrics.sequence().wrote()
    assert samples(metrics.text().decode())["rookery_queue_seconds_count"] == 1


def test_two_servers_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.prompt(5, 2)
    assert samples(first.text().decode())["rookery_prompt_tokens_cached_total"] == 2
    assert samples(second.text().decode())["rookery_prompt_tokens_cached_total"] == 0
