"""Large sets as Ray Data jobs: workers, each with the model for itself, answer batches of items side by side.

The items are made, and their rows written, by the process that asks, in the items' order; a batch is the same batch as
without workers. So the files of a run are the same to the byte, and a run that was stopped may go on with another
number of workers, or with none. The set's requests lie in Ray's memory all at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from rookery.errors import BackendError, InputError, MissingExtra, RookeryError
from rookery.evaluate.local import Local
from rookery.evaluate.requests import Answer, Request, Scorer
from rookery.evaluate.run import BATCH, Asked, Reader, batches
from rookery.evaluate.task import Item
from rookery.model import load

Make = Callable[[int], Scorer]  # by a number of threads; it is called in the workers


def reader(make: Make, about: dict[str, Any], workers: int, threads: int | None = None, batch: int = BATCH) -> Reader:
    """Who answers in `run`'s place: `workers` processes of the Ray cluster that RAY_ADDRESS names, else of one that
    lives as long as the reading does.

    `make(threads)` is the scorer in each of them; its `about` must be `about`. `threads`: of one worker; default: the
    cluster's processors, divided. Raises MissingExtra, and when it reads, InputError and BackendError.
    """
    if workers < 1:
        raise InputError(f"workers {workers}: 1 or more is wanted")
    _library()

    def read(items: Iterable[Item]) -> Asked:
        together = list(batches(items, batch))
        if not together:
            return
        with _cluster() as processors:
            each = threads or max(1, processors // workers)
            if workers * each > processors:
                needed = f"{workers} workers with {each} threads" if each > 1 else f"{workers} workers"
                raise InputError(f"{needed}: Ray has {processors} processors here; ask for fewer workers")
            asked = [_Asked(tuple(request for item in some for request in item.requests)) for some in together]
            for some, answered in zip(together, _answers(asked, make, about, workers, each), strict=True):
                answers = iter(answered)
                for item in some:
                    yield item, list(islice(answers, len(item.requests)))

    return read


@dataclass(frozen=True)
class _Asked:
    """One batch's requests: an object, that Ray takes for no column of its own."""

    requests: tuple[Request, ...]


@dataclass(frozen=True)
class _Answered:
    answers: Sequence[Answer] = ()
    refused: str = ""


class _Worker:
    """Answers batches. What the user has to mend comes back as words: Ray would show a traceback, and try again."""

    def __init__(self, make: Make, about: dict[str, Any], threads: int) -> None:
        self._refused = ""
        try:
            self._scorer = make(threads)
            differs = [name for name, value in about.items() if self._scorer.about.get(name) != value]
            if differs:
                self._refused = f"a worker's model differs in {', '.join(differs)}; wanted {about[differs[0]]!r}"
        except RookeryError as error:
            self._refused = f"a worker cannot begin: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"at": batch["at"], "answered": [self._answer(asked) for asked in batch["asked"]]}

    def _answer(self, asked: _Asked) -> _Answered:
        if self._refused:
            return _Answered(refused=self._refused)
        try:
            return _Answered(self._scorer.answer(list(asked.requests)))
        except RookeryError as error:
            return _Answered(refused=str(error))


def opened(path: str | os.PathLike[str], prefix: Sequence[int] | None = None, **options: Any) -> Make:
    """Local scorers of the model at `path`, opened by `rookery.load` with these options."""
    return partial(_open, placed(path), prefix, options)


def placed(path: str | os.PathLike[str]) -> str:
    """The same file or folder for a worker, which may stand elsewhere; a name that is no path is left alone."""
    return os.path.abspath(path) if os.path.exists(path) else os.fspath(path)


def _open(path: str, prefix: Sequence[int] | None, options: dict[str, Any], threads: int) -> Scorer:
    return Local(load(path, threads=threads, **options), prefix)


def _answers(
    asked: Sequence[_Asked], make: Make, about: dict[str, Any], workers: int, threads: int
) -> Iterator[Sequence[Answer]]:
    """Of each batch, in order, as they come."""
    import ray.data
    import ray.exceptions

    rows = [{"at": at, "asked": batch} for at, batch in enumerate(asked)]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        fn_constructor_args=(make, about, threads),
        num_cpus=threads,
    )
    try:
        for row in done.iter_rows():
            answered: _Answered = row["answered"]
            if answered.refused:
                raise InputError(answered.refused)
            yield answered.answers
    except ray.exceptions.RayError as error:
        raise BackendError(f"Ray gave up: {str(error).splitlines()[0]}") from error


def _library() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise MissingExtra("--workers", "ray") from None


@contextmanager
def _cluster() -> Iterator[int]:
    """The processors of the Ray cluster, which is begun if this process is in none, and then ended too."""
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
            os.environ.setdefault(name, value)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.execution_options.preserve_order, log.level
    try:
        context.enable_progress_bars, context.execution_options.preserve_order = False, True
        log.setLevel(logging.ERROR)  # every job is told of at length
        yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order, level = before
        log.setLevel(level)
        if ours:
            ray.shutdown()
