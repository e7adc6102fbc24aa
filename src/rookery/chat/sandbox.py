"""The process in which a Jinja template runs: a program of its own, started by `worker` and fed by pipes.

It may take memory and time as its first line says, and no more; it opens no file. Lines of JSON, one answer to each:
{"path", "memory", "seconds"} -> {"text": ""}; {"source"} -> {"text": ""}; {"variables"} -> {"text"} or {"error"}.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

MAX_TEXT = 4 << 20  # characters of one rendered talk


def environment() -> Any:
    """Jinja as transformers sets it up for chat templates, with every look at an inner attribute refused."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Strict(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise SecurityError(f"{attribute!r} of {type(obj).__name__} is not for templates")

    class Generation(Extension):
        """`{% generation %}` marks what a training run learns; here it is only its content."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return found

    def raise_exception(message: object) -> None:
        raise TemplateError(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made = Strict(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def limit(memory: int) -> None:
    """At most `memory` bytes more than now, no file written, no core left behind; where the system knows how."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(what, (0, 0))
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


def allow(seconds: float) -> None:
    """Processor time until the system ends this process: the parent's clock is shorter, but the parent may be gone."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def rendered(template: Any, variables: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > MAX_TEXT:
            raise ValueError(f"writes more than {MAX_TEXT} characters")
        pieces.append(piece)
    return "".join(pieces)


def explained(error: BaseException) -> str:
    """One line, however long or broken the template's own words are."""
    if isinstance(error, RecursionError):
        return "calls itself without end"
    line = getattr(error, "lineno", None)
    words = " ".join(str(error)[:1000].split())[:200]
    ours = type(error).__module__.startswith("jinja2") or isinstance(error, ValueError)
    return (f"line {line}: " if line else "") + (words if ours and words else f"{type(error).__name__}: {words}")


def serve() -> None:
    """Answers line after line until the pipe is closed, or memory runs out."""
    lines, out = sys.stdin.buffer, sys.stdout.buffer

    def answer(**what: str) -> None:
        out.write(json.dumps(what).encode() + b"\n")
        out.flush()

    setup = json.loads(lines.readline())
    sys.path[:] = setup["path"]
    made, template = environment(), None
    limit(setup["memory"])
    answer(text="")
    for line in lines:
        allow(setup["seconds"])
        try:
            request = json.loads(line)
            if template is None:
                template = made.from_string(request["source"])
                answer(text="")
            else:
                answer(text=rendered(template, request["variables"]))
        except MemoryError:
            answer(error="asks for too much memory")
            return
        except Exception as error:
            answer(error=explained(error))


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process with itself
    serve()
