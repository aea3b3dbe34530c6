"""Where models are kept.

EDGELLM_HOME, or the platform's folder for user data
├── models/NAME.edgellm      packed models; a file here is whole
└── downloads/               what pulls are at work on
EDGELLM_HOME/cache, or the platform's folder for caches
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgellm.catalogue import CATALOGUE
from edgellm.errors import ModelNotFoundError, OptionError, PackedFileError
from edgellm.packed.header import PackedHeader, open_header

SUFFIX = ".edgellm"
MAX_NAME = 100  # characters

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class StoredModel:
    """A file of the store: its header, or why it cannot be read."""

    name: str
    path: Path
    header: PackedHeader | PackedFileError


class Store:
    """The packed models of a user, by name."""

    def __init__(self, home: Path | None = None) -> None:
        home = home or _home() or Path(platformdirs.user_data_dir("edgellm", appauthor=False))
        self.models_folder = home / "models"
        self.downloads_folder = home / "downloads"

    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(SUFFIX) for path in self.models_folder.glob(f"[!.]*{SUFFIX}"))

    def models(self) -> list[StoredModel]:
        """All models by name; reads their headers only."""
        paths = {name: self.models_folder / f"{name}{SUFFIX}" for name in self.names()}
        return [StoredModel(name, path, _header(path)) for name, path in paths.items()]

    def path(self, name: str) -> Path:
        """The packed file of a model; ModelNotFoundError with the names that come near."""
        if name not in self.names():
            raise ModelNotFoundError(self.not_found(name))
        return self.models_folder / f"{name}{SUFFIX}"

    def not_found(self, name: str) -> str:
        """Says that there is no such model, which ones come near, and what there is."""
        if name in CATALOGUE:
            return f"the model {name} is not here yet; get it with `edgellm pull {name}`"
        names = self.names()
        known = sorted({*names, *CATALOGUE})
        wanted = name.lower()
        near = [other for other in known if wanted and (other.startswith(wanted) or wanted.startswith(other))][:3]
        near = near or difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        question = f"did you mean {' or '.join(near)}? " if near else ""
        return (
            f"there is no model {name!r:.200}; {question}Models here: {', '.join(names) or 'none yet'}. "
            f"`edgellm pull` gets {', '.join(CATALOGUE)}, PATH.gguf or hf:OWNER/REPO/FILE.gguf"
        )

    def destination(self, name: str) -> Path:
        """Where a model of that name lies or would lie; OptionError for a name that is none."""
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise OptionError(
                f"model name {name!r:.200} is not a letter or digit and up to {MAX_NAME - 1} more of a-z 0-9 . _ -; "
                f"{valid_name(name)!r} would do"
            )
        return self.models_folder / f"{name}{SUFFIX}"

    def remove(self, name: str) -> None:
        self.path(name).unlink()


def cache_folder() -> Path:
    """Where things are kept that can be made again: models packed on the fly, compiled kernels."""
    home = _home()
    return home / "cache" if home else Path(platformdirs.user_cache_dir("edgellm", appauthor=False))


def valid_name(text: str) -> str:
    """The nearest model name to any text, a file's stem for instance."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    return name[:MAX_NAME] or "model"


def _home() -> Path | None:
    home = os.environ.get("EDGELLM_HOME")
    return Path(home).expanduser().absolute() if home else None


def _header(path: Path) -> PackedHeader | PackedFileError:
    try:
        return open_header(path)
    except PackedFileError as error:
        return error
