"""Getting a model by name, against a hub on this machine: the cache, going on, checksums, and everything that fails."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rookery
from hub_server import COMMIT, Hub, serving
from rookery import errors, hub

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hf")
file_download = pytest.importorskip("huggingface_hub.file_download")

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = (FIXTURES / "v7.safetensors").read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({"rwkv.safetensors": MODEL, "README.md": b"hi"}, large=frozenset({"rwkv.safetensors"}))) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() and path.suffix != ".lock"}


def test_pull_then_load_without_asking(server: Hub, cache: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = hub.pull("org/name", lambda done, total: steps.append((done, total)))
    assert Path(path).read_bytes() == MODEL
    assert path == str(cache / "models--org--name" / "snapshots" / COMMIT / "rwkv.safetensors")
    assert files_in(cache) == {
        f"models--org--name/blobs/{hashlib.sha256(MODEL).hexdigest()}", "models--org--name/refs/main",
        f"models--org--name/snapshots/{COMMIT}/rwkv.safetensors",
    }  # fmt: skip
    assert (steps[0], steps[-1]) == ((0, len(MODEL)), (len(MODEL), len(MODEL)))
    assert steps == sorted(steps)
    assert len(steps) > 10
    server.asked.clear()
    for name in ("org/name", "org/name:rwkv.safetensors", f"org/name@{COMMIT}", "org/name@main"):
        assert rookery.load(name, tokenizer="bytes").weights.path == path
    assert server.asked == []
    assert hub.pull("org/name") == path  # looked at, not downloaded
    assert server.downloads() == []


def test_the_library_knows_what_we_put_into_its_cache(server: Hub, cache: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    path = hub.pull("org/name")
    assert try_to_load_from_cache("org/name", "rwkv.safetensors", cache_dir=cache) == path


def test_load_downloads_and_says_so(server: Hub, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rookery"):
        assert rookery.load("org/name@v1").config.version == "7"
    assert caplog.messages == ["rookery: downloading org/name@v1 (0.1 MB)"]
    assert (cache / "models--org--name/refs/v1").read_text() == COMMIT


def test_a_connection_that_breaks_once(server: Hub, cache: Path) -> None:
    server.broken["rwkv.safetensors"] = 30_500
    path = hub.pull("org/name")
    assert Path(path).read_bytes() == MODEL
    assert server.downloads() == [("rwkv.safetensors", ""), ("rwkv.safetensors", "bytes=30000-")]


def test_an_interrupted_pull_goes_on(server: Hub, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("org/name", interrupt)
    assert hub.cached(hub.Name("org/name", "main", None)) is None  # half a file is no model
    assert Path(hub.pull("org/name")).read_bytes() == MODEL
    (_, first), (_, second) = server.downloads()
    assert first == ""
    assert second == "bytes=20000-"


def test_a_server_without_ranges_starts_again(server: Hub, cache: Path) -> None:
    test_an_interrupted_pull_goes_on(server, cache)
    blobs = cache / "models--org--name" / "blobs"
    blob = next(blobs.iterdir())
    (blobs / f"{blob.name}.rookery.part").write_bytes(MODEL[:500])
    blob.unlink()
    server.ranges = False
    assert Path(hub.pull("org/name")).read_bytes() == MODEL


@pytest.mark.parametrize("large", [True, False], ids=["sha256", "git"])
def test_a_wrong_checksum_is_refused(server: Hub, cache: Path, large: bool) -> None:
    server.large = frozenset({"rwkv.safetensors"} if large else ())
    server.wrong["rwkv.safetensors"] = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    for _ in range(2):  # the second starts from nothing
        with pytest.raises(errors.DamagedFile, match=r"rwkv.safetensors: what came has another checksum"):
            hub.pull("org/name")
        assert files_in(cache) == set()
    assert {range for _, range in server.downloads()} == {""}
    server.wrong.clear()
    assert Path(hub.pull("org/name")).read_bytes() == MODEL


def test_a_part_of_another_file_is_found_out(server: Hub, cache: Path) -> None:
    blobs = cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{server.etag('rwkv.safetensors')}.rookery.part"
    part.write_bytes(b"?" * 1000)
    with pytest.raises(errors.DamagedFile, match="another checksum"):
        hub.pull("org/name")
    part.write_bytes(b"?" * (len(MODEL) + 1))  # too long to be part of it
    assert Path(hub.pull("org/name")).read_bytes() == MODEL


def test_a_file_that_was_damaged_in_the_cache_is_got_again(server: Hub, cache: Path) -> None:
    path = hub.pull("org/name")
    with open(path, "r+b") as file:
        file.write(b"?")
    assert Path(hub.pull("org/name")).read_bytes() == MODEL


@pytest.mark.parametrize("more", [b"x", b"x" * 100_000])
def test_more_bytes_than_said(server: Hub, cache: Path, more: bytes) -> None:
    server.wrong["rwkv.safetensors"] = MODEL + more
    with pytest.raises(errors.RookeryError):
        hub.pull("org/name")
    assert hub.cached(hub.Name("org/name", "main", None)) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/other", "^org/other: no such path here and no such model on http://127.0.0.1"),
        ("org/name@nope", "^org/name@nope: has no revision 'nope'"),
        ("org/name:rwkv.pth", "^org/name: has no rwkv.pth; there is: rookery pull org/name:rwkv.safetensors$"),
        ("org/name:.", "^org/name: has no Hugging Face folder; there is: rookery pull"),
    ],
)
def test_what_is_not_there(server: Hub, name: str, message: str) -> None:
    with pytest.raises(errors.MissingFile, match=message):
        hub.pull(name)
    assert server.downloads() == []


def test_gated_and_broken_hubs(server: Hub) -> None:
    server.status = 403
    with pytest.raises(errors.NoPermission, match=r"is gated: accept its terms on http.*/org/name, then"):
        hub.pull("org/name")
    server.status = 500
    with pytest.raises(errors.MissingFile, match=r"does not answer as it should .*set HF_ENDPOINT to a mirror"):
        hub.pull("org/name")


def test_nobody_answers(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(errors.MissingFile, match=r"http://127.0.0.1:9 does not answer") as caught:
        rookery.load("org/name")
    assert "\n" not in str(caught.value)


def test_offline(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.MissingFile, match=r"HF_HUB_OFFLINE is set.*unset it and run: rookery pull org/name$"):
        rookery.load("org/name")
    assert server.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.pull("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert rookery.load("org/name").config.version == "7"


def test_several_models_are_listed(server: Hub) -> None:
    server.files |= {"a b.pth": b"1", "sub/c.gguf": b"2"}
    with pytest.raises(errors.InputError) as caught:
        hub.pull("org/name@v1")
    assert str(caught.value) == (
        "org/name@v1: holds 3 models; name one: rookery pull 'org/name@v1:a b.pth'; "
        "rookery pull org/name@v1:rwkv.safetensors; rookery pull org/name@v1:sub/c.gguf"
    )
    assert Path(hub.pull("org/name:sub/c.gguf")).read_bytes() == b"2"
    server.asked.clear()
    assert hub.find("org/name").endswith("sub/c.gguf")  # the one that is here
    assert server.asked == []


def test_a_repository_without_a_model(server: Hub) -> None:
    server.files = {"README.md": b"hi", "config.json": b"{}", "optimizer.bin": b""}
    with pytest.raises(errors.MissingFile, match="holds no model that Rookery reads"):
        hub.pull("org/name")


FOLDER = {
    "README.md": b"hi", "config.json": b"{}", "model-00001-of-00002.safetensors": b"1", "tokenizer.json": b"{} ",
    "model-00002-of-00002.safetensors": b"2", "model.safetensors.index.json": b" {}", "modeling.py": b"import os",
    "pytorch_model.bin": b"3", "sub/config.json": b"{}",
}  # fmt: skip


def test_a_folder_is_complete_when_its_config_is_there(server: Hub, cache: Path) -> None:
    server.files = FOLDER
    server.broken["model-00002-of-00002.safetensors"] = 0
    with pytest.raises(errors.MissingFile, match="does not answer"):
        hub.pull("org/name")
    assert hub.cached(hub.Name("org/name", "main", None)) is None
    server.broken.clear()
    path = Path(hub.pull("org/name"))
    assert path.name == COMMIT
    assert files_in(path) == set(FOLDER) - {"README.md", "modeling.py", "pytorch_model.bin", "sub/config.json"}
    assert [name for name, _ in server.downloads()][-1] == "config.json"
    server.asked.clear()
    assert hub.find("org/name") == hub.find("org/name:.") == str(path)
    assert server.asked == []


def test_a_real_folder_runs_from_the_cache(server: Hub, tmp_path: Path) -> None:
    """The cache's folder is links to blobs beside it, which the folder's reader has to follow, and no others."""
    source = FIXTURES / "v4.safetensors"
    rookery.weights.convert(source, tmp_path / "folder", to="hf")
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    model = rookery.load("org/name", backend="reference")
    assert model.weights.format == "hf"
    ours, _ = rookery.load(source, backend="reference").forward([1, 2, 3])
    assert (model.forward([1, 2, 3])[0] == ours).all()


def test_choosing() -> None:
    bins = {"config.json", "pytorch_model.bin", "rwkv.pth"}
    assert hub.candidates(bins) == {".": ["pytorch_model.bin", "config.json"], "rwkv.pth": ["rwkv.pth"]}
    assert hub.candidates({"model.safetensors"}) == {"model.safetensors": ["model.safetensors"]}
    assert hub.candidates([]) == {}


@pytest.mark.parametrize(
    "evil", ["../../evil.pth", "/etc/evil.pth", "a/../../evil.pth", "a\\evil.pth", "C:evil.pth", "a\x1b.pth"]
)
def test_names_lead_nowhere_else(server: Hub, cache: Path, evil: str) -> None:
    server.files[evil] = b"evil"
    assert hub.pull("org/name").endswith("rwkv.safetensors")  # as if it were not there
    with pytest.raises(errors.InputError, match="is no name on the hub"):
        hub.pull(f"org/name:{evil}")
    assert list(cache.parent.rglob("*evil*")) == []


@pytest.mark.parametrize("commit", ["../../../evil", "main", "", "0" * 39])
def test_a_hostile_commit(server: Hub, commit: str) -> None:
    server.commit = commit
    with pytest.raises(errors.DamagedFile, match="gives no commit"):
        hub.pull("org/name")


@pytest.mark.parametrize("etag", ["../../../evil", "evil", "0" * 41])
def test_a_hostile_etag(server: Hub, cache: Path, etag: str) -> None:
    server.etags["rwkv.safetensors"] = etag
    with pytest.raises(errors.DamagedFile, match="gives no checksum"):
        hub.pull("org/name")
    assert files_in(cache.parent) == set()


@pytest.mark.parametrize("ref", ["../../../x", "", "0" * 39, "\udcff"])
def test_a_damaged_cache_is_no_cache(cache: Path, ref: str) -> None:
    home = cache / "models--org--name"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_bytes(os.fsencode(ref))
    assert hub.cached(hub.Name("org/name", "main", None)) is None


@pytest.mark.parametrize(
    "text", ["org/name", "BlinkDL/rwkv-7-world", "a/b@v1", "a/b:x.pth", "a/b@x/y:sub/x y.pth", "a/b:."]
)
def test_names(cache: Path, text: str) -> None:
    assert hub.is_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "gosling",
        "a/b/c",
        "/a/b",
        "./a/b",
        "../b",
        "a/",
        "a/b.pth",
        "a/b.safetensors",
        "here/b",
        "here/b:c",
        "a b/c",
        "-a/b",
        "a/b@",
    ],
)
def test_paths(cache: Path, text: str) -> None:
    Path("here").mkdir()
    assert not hub.is_name(text)


@pytest.mark.parametrize("text", ["gosling", "a/../b", "a/b@../c", "a/b@c..d", "a/b:..", "/a", ""])
def test_no_names(cache: Path, text: str) -> None:
    with pytest.raises(errors.InputError, match="is no name on the hub; wanted ORG/NAME"):
        hub.pull(text)


def test_a_full_disk(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("D", (), {"free": 10}))
    with pytest.raises(errors.CannotWrite, match="are to come, 0 MB are free"):
        hub.pull("org/name")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_may_not_be_written(server: Hub, cache: Path) -> None:
    cache.mkdir(mode=0o500)
    with pytest.raises(errors.CannotWrite, match="cannot be written"):
        hub.pull("org/name")


def test_a_cache_that_is_a_file(server: Hub, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(errors.CannotWrite, match="cannot be written"):
        hub.pull("org/name")


def test_without_the_library() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import rookery\n"
        "try: rookery.load('org/name')\n"
        "except rookery.errors.MissingExtra as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("org/name: no such path here")
    assert said.strip().endswith("needs an optional part: pip install 'rookery[hf]'")
