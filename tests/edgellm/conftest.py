"""What tests of the disk cache share."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a disk cache; it is not there yet."""
    return tmp_path / "cache" / "kv"
