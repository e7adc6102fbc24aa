"""Models by name, from the Hugging Face hub: `org/name`, `org/name:FILE`, `org/name@REVISION:FILE`.

The cache is huggingface_hub's own, shared with every other program that uses it. What this room adds to the library is
a download that goes on where it stopped, and a look at every byte: a file enters the cache when its checksum is the
one that the hub has for it, and not before. Names from outside never lead out of the cache.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rookery import errors
from rookery.formats.atomic import atomic_write

Progress = Callable[[int, int], None]  # bytes here, bytes in all

_WORD = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@({_WORD}(?:/{_WORD})*))?(?::(.+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_ETAG = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # a git blob's SHA-1, a large file's SHA-256

SUFFIXES = (".pth", ".safetensors", ".gguf")
FOLDER = "."  # what stands for a whole Hugging Face folder
CONFIG = "config.json"
EXTRAS = ("rwkv_vocab_v20230424.txt", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS = [
    re.compile(rf"{stem}(-\d+-of-\d+)?\.{suffix}(\.index\.json)?")
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin"))
]


@dataclass(frozen=True)
class Name:
    repo: str
    revision: str
    file: str | None

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return self.repo + at + ("" if self.file is None else f":{self.file}")


def is_name(text: str) -> bool:
    """Whether `text` can only mean a model on the hub: no path here, nor a mistyped one."""
    found = _NAME.fullmatch(text)
    if not found or os.path.exists(text) or os.path.isdir(text.split("/")[0]):
        return False
    return found[3] is not None or not text.endswith((*SUFFIXES, ".pt", ".bin"))


def find(text: str) -> str:
    """The path of the model `text`: from the cache without asking anyone, else downloaded. Raises as `pull`."""
    name = _parse(text)
    with _library(name):
        return cached(name) or pull(text)


def cached(name: Name) -> str | None:
    """The path of a model in the cache. Raises InputError if several are there."""
    home = _home(name)
    commit = name.revision
    if not _COMMIT.fullmatch(commit):
        try:
            with open(os.path.join(home, "refs", *commit.split("/")), encoding="ascii") as file:
                commit = file.read(64).strip()
        except (OSError, UnicodeError):
            return None
    snapshot = os.path.join(home, "snapshots", commit)
    if not _COMMIT.fullmatch(commit) or not os.path.isdir(snapshot):
        return None
    here = [
        os.path.relpath(os.path.join(folder, file), snapshot).replace(os.sep, "/")
        for folder, _, files in os.walk(snapshot)
        for file in files
    ]
    if name.file not in (None, FOLDER, *here) or not (name.file or candidates(here)):
        return None
    needed = choose(name, here)
    return _path(snapshot, needed)


def pull(text: str, progress: Progress | None = None) -> str:
    """Download a model into the cache, or what of it is missing there, check every byte, and return its path.

    Raises InputError (no name, or several models), MissingFile (none of this name, offline), NoPermission (gated),
    DamagedFile (wrong checksum), CannotWrite (disk full) and MissingExtra.
    """
    name = _parse(text)
    with _library(name) as hub:
        with _explained(name):
            info = hub.HfApi().model_info(name.repo, revision=name.revision)
        files = [entry.rfilename for entry in info.siblings or [] if _is_safe(entry.rfilename)]
        if not _COMMIT.fullmatch(str(info.sha)):
            raise errors.DamagedFile(str(name), f"the hub gives no commit but {str(info.sha)[:60]!r}")
        needed = choose(name, files)
        snapshot = os.path.join(_home(name), "snapshots", info.sha)
        wanted = [_Remote.of(hub, name, file, info.sha) for file in needed]
        total, before = sum(file.size for file in wanted), 0
        if progress is None:
            logging.getLogger("rookery").warning("rookery: downloading %s (%.1f MB)", name, total / 1e6)
        for file in wanted:
            blob = file.fetch(hub, _Meter(progress, before, total))
            _link(blob, os.path.join(snapshot, *file.file.split("/")))
            before += file.size
        if name.revision != info.sha:
            ref = os.path.join(_home(name), "refs", *name.revision.split("/"))
            os.makedirs(os.path.dirname(ref), exist_ok=True)
            with atomic_write(ref) as out:
                out.write(info.sha.encode())
        return _path(snapshot, needed)


def candidates(files: Iterable[str]) -> dict[str, list[str]]:
    """What can be asked for, and the files it takes, the last of which makes it complete."""
    files = sorted(files)
    found: dict[str, list[str]] = {}
    parts: list[str] = []
    if CONFIG in files:
        parts = next((all for pattern in _WEIGHTS if (all := [f for f in files if pattern.fullmatch(f)])), [])
        if parts:
            found[FOLDER] = [*parts, *(extra for extra in EXTRAS if extra in files), CONFIG]
    return found | {file: [file] for file in files if file.endswith(SUFFIXES) and file not in parts}


def choose(name: Name, files: list[str]) -> list[str]:
    """The files that `name` means. Raises MissingFile and InputError, which lists what there is."""
    found = candidates(files)
    if name.file in found:
        return found[name.file]
    if name.file in files:
        return [name.file]
    plain = Name(name.repo, name.revision, None)
    commands = [f"rookery pull {shlex.quote(f'{plain}:{what}')}" for what in found]
    listing = "; ".join(commands[:12]) + ("; ..." if len(commands) > 12 else "")
    if name.file is not None:
        there = f"; there is: {listing}" if listing else ""
        raise errors.MissingFile(
            str(plain), f"has no {'Hugging Face folder' if name.file == FOLDER else name.file}{there}"
        )
    if not found:
        wanted = f"wanted a {', '.join(SUFFIXES)} file or a Hugging Face folder"
        raise errors.MissingFile(str(plain), f"holds no model that Rookery reads; {wanted}")
    if len(found) > 1:
        raise errors.InputError(f"{plain}: holds {len(found)} models; name one: {listing}")
    return next(iter(found.values()))


@dataclass(frozen=True)
class _Remote:
    """One file on the hub."""

    name: Name
    file: str
    url: str
    etag: str
    size: int

    @staticmethod
    def of(hub: Any, name: Name, file: str, commit: str) -> _Remote:
        url = hub.hf_hub_url(name.repo, file, revision=commit)
        with _explained(name):
            found = hub.get_hf_file_metadata(url)
        if not _ETAG.fullmatch(found.etag or "") or found.size is None:
            raise errors.DamagedFile(str(name), f"{file}: the server gives no checksum; is HF_ENDPOINT a hub?")
        return _Remote(name, file, url, found.etag, found.size)

    def fetch(self, hub: Any, meter: _Meter) -> str:
        """The path of the blob, downloaded unless it is there and whole."""
        blobs = os.path.join(_home(self.name), "blobs")
        blob = os.path.join(blobs, self.etag)
        os.makedirs(blobs, exist_ok=True)
        locks = os.path.join(hub.constants.HF_HUB_CACHE, ".locks", os.path.basename(_home(self.name)))
        os.makedirs(locks, exist_ok=True)
        with hub.utils.WeakFileLock(os.path.join(locks, f"{self.etag}.lock")):  # as the library names it
            if not (os.path.isfile(blob) and os.path.getsize(blob) == self.size and _checksum(blob, self.etag)):
                self._download(hub, f"{blob}.rookery.part", meter)
                os.replace(f"{blob}.rookery.part", blob)
        meter.set(self.size)
        return blob

    def _download(self, hub: Any, part: str, meter: _Meter) -> None:
        from huggingface_hub.file_download import http_get

        have = os.path.getsize(part) if os.path.exists(part) else 0
        if have > self.size:
            os.unlink(part)
            have = 0
        if (free := shutil.disk_usage(os.path.dirname(part)).free) < self.size - have:
            raise errors.CannotWrite(
                part, f"{(self.size - have) / 1e6:.0f} MB are to come, {free / 1e6:.0f} MB are free"
            )
        meter.limit = self.size
        with _explained(self.name), _quiet(), open(part, "ab") as out:
            bar: Any = meter.bar
            headers = hub.utils.build_hf_headers()
            http_get(self.url, out, resume_size=have, headers=headers, expected_size=self.size, tqdm_class=bar)
        if not _checksum(part, self.etag):
            os.unlink(part)
            raise errors.DamagedFile(
                str(self.name),
                f"{self.file}: what came has another checksum than the hub's, and was removed; pull again",
            )


class _Meter:
    """Counts the bytes of one file among those of all."""

    def __init__(self, progress: Progress | None, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total
        self._here = self.limit = 0

    def set(self, here: int) -> None:
        self._here = here
        if self._progress:
            self._progress(self._before + here, self._total)

    def bar(self, *_: object, initial: int = 0, **__: object) -> _Meter:
        """What the library takes for a class of progress bars."""
        self.set(initial)  # 0 again where the server does not go on but starts anew
        return self

    def update(self, count: float | None = 1) -> None:
        self.set(self._here + int(count or 0))
        if self._here > self.limit:
            raise OSError("more comes than the hub has said")

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None: ...


def _parse(text: str) -> Name:
    found = _NAME.fullmatch(text)
    if not found or ".." in text or (found[3] and not (found[3] == FOLDER or _is_safe(found[3]))):
        raise errors.InputError(
            f"{text}: is no name on the hub; wanted ORG/NAME, ORG/NAME:FILE or ORG/NAME@REVISION:FILE"
        )
    return Name(found[1], found[2] or "main", found[3])


def _is_safe(file: str) -> bool:
    """Whether a file's name in a repository stays inside it on every system."""
    parts = file.split("/")
    return file.isprintable() and not any(p in ("", ".", "..") or "\\" in p or ":" in p for p in parts)


def _home(name: Name) -> str:
    from huggingface_hub import constants

    return os.path.join(constants.HF_HUB_CACHE, f"models--{name.repo.replace('/', '--')}")


def _path(snapshot: str, needed: list[str]) -> str:
    return os.path.join(snapshot, *needed[0].split("/")) if len(needed) == 1 else snapshot


def _checksum(path: str, etag: str) -> bool:
    """Whether the file at `path` is the one of this etag."""
    with open(path, "rb") as file:
        if len(etag) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == etag
        digest = hashlib.sha1(b"blob %d\0" % os.path.getsize(path), usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest() == etag


def _link(blob: str, pointer: str) -> None:
    """The cache's name for a blob: a relative link, or a copy where the system has no links."""
    os.makedirs(os.path.dirname(pointer), exist_ok=True)
    new = f"{pointer}.{os.getpid()}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    try:
        os.symlink(os.path.relpath(blob, os.path.dirname(pointer)), new)
    except OSError:
        shutil.copyfile(blob, new)
    os.replace(new, pointer)


@contextmanager
def _library(name: Name) -> Iterator[Any]:
    """huggingface_hub; what the disk refuses inside the block is a CannotWrite."""
    try:
        import huggingface_hub
    except ImportError:
        raise errors.MissingExtra(f"{name}: no such path here; to get a model of this name", "hf") from None
    try:
        yield huggingface_hub
    except OSError as error:
        raise errors.CannotWrite(_home(name), f"cannot be written ({error.strerror or error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's several lines for each time that it tries again."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _explained(name: Name) -> Iterator[None]:
    """What the library or the network raises, as one line that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as theirs

    try:
        yield
    except errors.RookeryError:
        raise
    except theirs.OfflineModeIsEnabled:
        raise errors.MissingFile(
            str(name), f"HF_HUB_OFFLINE is set, and nothing can be asked for; unset it and run: rookery pull {name}"
        ) from None
    except theirs.GatedRepoError:
        raise errors.NoPermission(
            str(name), f"is gated: accept its terms on {constants.ENDPOINT}/{name.repo}, then `hf auth login`"
        ) from None
    except theirs.RevisionNotFoundError:
        raise errors.MissingFile(str(name), f"has no revision {name.revision!r}") from None
    except theirs.RepositoryNotFoundError:
        raise errors.MissingFile(
            str(name),
            f"no such path here and no such model on {constants.ENDPOINT}, or a private one (`hf auth login`)",
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EIO):
            raise
        raise _broken(name, error) from error
    except Exception as error:  # of several HTTP libraries, by version
        raise _broken(name, error) from error


def _broken(name: Name, error: Exception) -> errors.MissingFile:
    from huggingface_hub import constants

    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return errors.MissingFile(
        str(name),
        f"{constants.ENDPOINT} does not answer as it should ({why}); try again later, which goes on where a download "
        "stopped, or set HF_ENDPOINT to a mirror",
    )
