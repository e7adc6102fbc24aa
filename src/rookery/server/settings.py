"""What a server is told at its start: where it listens, what it keeps, and every limit that may differ between places.

Limits of single fields of a request stand with the fields.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from rookery.errors import InputError

MIB = 1 << 20
_ORIGIN = re.compile(r"https?://[^/\s*]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Seconds and bytes unless said otherwise."""

    # where
    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    alias: str | None = None  # the model's id for clients and, after commas, its other names; default: its file's name
    store: str | None = None  # a folder or redis://...; None: in memory
    half: bool = False  # stored states are rounded to float16
    store_bytes: int | None = None  # of snapshots; None: the store's own default
    template: str | None = None
    adapters: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # other ids of the model: with these beside it
    state: str | None = None  # the file of a state that texts begin with
    states: Mapping[str, str] = field(default_factory=dict)  # other ids: with these states to begin with
    records: bool = False  # needs a folder
    # who
    api_key_file: str | None = None
    insecure: bool = False
    cors: tuple[str, ...] = ()  # origins of pages that may call
    # the engine
    max_batch: int = 16  # sequences in one step
    max_waiting: int = 512  # sequences
    prefix_bytes: int = 256 * MIB  # states of stateless prompts, in memory
    open_talks: int = 64  # stored talks kept at hand
    # one request
    max_prompt_tokens: int = 1_000_000
    max_tokens: int = 1_000_000  # of a reply, at most
    default_tokens: int = 1024  # of a chat reply where the request says nothing
    body_bytes: int = 64 * MIB  # a state of the largest models is half of that
    bodies_bytes: int = 256 * MIB  # of all bodies being read at once
    body_seconds: float = 30.0
    json_depth: int = 64
    json_signs: int = 4_000_000  # commas, quotes and brackets: bounds what a body becomes in memory
    max_headers: int = 100
    header_bytes: int = 32 << 10
    target_bytes: int = 8192  # path and query
    # one connection
    connections: int = 1024
    header_seconds: float = 10.0
    keep_alive_seconds: float = 30.0
    ping_seconds: float = 15.0  # a comment in a silent stream
    stuck_seconds: float = 30.0  # a reader that takes nothing for so long is dropped
    # the end
    drain_seconds: float = 30.0  # streams in flight may finish
    store_seconds: float = 10.0  # what was cut off may still be stored

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "body_bytes", "connections", "json_depth", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}; wanted 0 to 65535")
        if self.records and (self.store is None or "://" in self.store):
            raise InputError("records are written into the store's folder; name one: --store DIR")
        for origin in self.cors:
            if not _ORIGIN.fullmatch(origin):
                raise InputError(
                    f"--cors {origin!r}: wanted an origin such as https://chat.example or http://host:3000"
                )
        if self.api_key_file is None and not self.loopback and not self.insecure:
            raise InputError(
                f"{self.host} can be reached by others, and no key is asked for; give --api-key-file FILE, "
                "or --insecure if anyone may use the model"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def folder(self) -> str | None:
        """The store's folder; None where it is no folder."""
        return None if self.store is None or "://" in self.store else os.path.abspath(self.store)
