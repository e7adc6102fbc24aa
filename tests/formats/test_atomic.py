"""A file's name leads to the old bytes or to all of the new, whatever happens in between."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import forge
import pytest

from rookery import errors, formats
from rookery.formats.atomic import atomic_write


def test_a_new_file_and_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"first", b"second"):
        with atomic_write(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, errors.UnsupportedType])
def test_an_exception_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    raised = errors.UnsupportedType("x", "y") if error is errors.UnsupportedType else error()

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise raised

    with pytest.raises(error):
        write()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_symbolic_link_stays_and_permissions_too(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "real").read_bytes() == b"new"


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "says"),
    [("folder", "is a folder"), ("", "is a folder"), ("fifo", "is a device"), ("/dev/null", "is a device"),
     ("absent/x", "No such file"), ("plain/x", "Not a directory"), ("x" * 300, "too long"), ("loop", "symbolic")],
)  # fmt: skip
def test_targets_that_cannot_be_written(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.CannotWrite, match=says), atomic_write(tmp_path / name) as file:
        file.write(b"new")
    assert sorted(tmp_path.rglob("*")) == before


def test_read_only_file_and_folder(unprivileged: Path) -> None:
    (unprivileged / "x").write_bytes(b"old")
    (unprivileged / "x").chmod(0o444)
    with pytest.raises(errors.CannotWrite, match="Permission denied"), atomic_write(unprivileged / "x") as file:
        file.write(b"new")
    unprivileged.chmod(0o555)
    with pytest.raises(errors.CannotWrite, match="Permission denied"), atomic_write(unprivileged / "y") as file:
        file.write(b"new")
    unprivileged.chmod(0o755)
    assert [p.read_bytes() for p in unprivileged.iterdir()] == [b"old"]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"old")
    tensors = {name: tensor for name, tensor in forge.sample().items() if tensor.size}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write beyond fails as one to a full disk does
    try:
        with pytest.raises(errors.CannotWrite, match="too large"):
            formats.write(path, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


IN_THE_MIDDLE = """
from rookery.formats.atomic import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(bytes(1_000_000))
    pause()
"""
BEFORE_THE_END = """
import numpy as np
from rookery import formats
os.fsync = lambda descriptor: pause()
formats.write(sys.argv[1], {"a": formats.Tensor.of(np.zeros(250_000, np.float32))})
"""
PAUSE = "import os, sys\ndef pause():\n    print('here', flush=True)\n    sys.stdin.read()\n"


@pytest.mark.parametrize("script", [IN_THE_MIDDLE, BEFORE_THE_END])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_kill_9_leaves_the_old_file(tmp_path: Path, script: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    command = [sys.executable, "-c", PAUSE + script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert left.stat().st_size >= 900_000, "the write was not under way, so this test showed nothing"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
