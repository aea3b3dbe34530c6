"""What `import edgellm` offers."""

import types

import edgellm


def test_all_public_names_are_exported_and_sorted() -> None:
    public = {name for name, value in vars(edgellm).items() if not isinstance(value, types.ModuleType)}
    assert edgellm.__all__ == sorted(name for name in public if not name.startswith("_") or name == "__version__")
