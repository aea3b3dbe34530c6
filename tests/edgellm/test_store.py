"""Models by name, and nothing but models by name."""

from pathlib import Path

import pytest

from edgellm.errors import ModelNotFoundError, OptionError, PackedFileError
from edgellm.packed.header import open_header
from edgellm.store import Store, cache_folder, valid_name
from tests.edgellm.test_packed import write_tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.models_folder.mkdir()
    write_tiny(store.destination("tiny-1.0"))
    return store


def test_lists_models_and_damaged_files(store: Store) -> None:
    store.destination("broken").write_bytes(b"no model")
    (store.models_folder / ".tiny.edgellm.1234.part").touch()
    (store.models_folder / ".hidden.edgellm").touch()
    (store.models_folder / "Other.edgellm").touch()
    (store.models_folder / "notes.txt").touch()
    assert store.names() == ["Other", "broken", "tiny-1.0"]
    other, broken, tiny = store.models()
    assert isinstance(broken.header, PackedFileError) and isinstance(other.header, PackedFileError)
    assert tiny.header == open_header(tiny.path)
    assert tiny.path == store.path("tiny-1.0")


def test_empty_store(tmp_path: Path) -> None:
    assert Store(tmp_path / "absent").models() == []
    with pytest.raises(ModelNotFoundError, match="none yet"):
        Store(tmp_path / "absent").path("x")


def test_unknown_name_shows_near_matches_and_what_can_be_pulled(store: Store) -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean tiny-1\.0\?.*here: tiny-1\.0.*smollm2-135m-instruct"):
        store.path("Tiny1.0")
    with pytest.raises(ModelNotFoundError, match="get it with `edgellm pull smollm2-135m-instruct`"):
        store.path("smollm2-135m-instruct")
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2-135m-instruct"):
        store.path("smollm-135m")
    with pytest.raises(ModelNotFoundError, match="'zzz'; Models here"):
        store.path("zzz")


def test_remove(store: Store) -> None:
    store.remove("tiny-1.0")
    assert store.names() == []
    with pytest.raises(ModelNotFoundError):
        store.remove("tiny-1.0")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "A", "é", ".a", "-a", "a\n", "a\0", "a" * 101]
)
def test_names_that_are_none(store: Store, name: str) -> None:
    with pytest.raises(OptionError, match="would do") as caught:
        store.destination(name)
    with pytest.raises(ModelNotFoundError):
        store.path(name)
    with pytest.raises(ModelNotFoundError):
        store.remove(name)
    offered = str(caught.value).split("'")[-2]
    assert store.destination(offered).parent == store.models_folder


def test_valid_name() -> None:
    assert valid_name("SmolLM2-135M Instruct.Q4_1") == "smollm2-135m-instruct.q4_1"
    assert valid_name("../é") == "model"


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    assert Store().models_folder == tmp_path / "home" / "models"
    assert cache_folder() == tmp_path / "home" / "cache"
    monkeypatch.delenv("EDGELLM_HOME")
    for folder in (Store().models_folder, cache_folder()):
        assert folder.is_absolute() and "edgellm" in folder.parts
