"""The errors are one tree, drawn as it is."""

import inspect
import re

import pytest

import edgellm
from edgellm import errors

CLASSES = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
DRAWN = (errors.__doc__ or "").splitlines()


def test_the_drawing_is_the_tree() -> None:
    found: list[tuple[str, str]] = []
    path: list[str] = []
    for line in DRAWN:
        if match := re.match(r"([│ ]*)(?:[├└]── )?(\w+Error)\b", line):
            depth = len(match[1]) // 4 + ("──" in line)
            path[depth:] = [match[2]]
            if depth:
                found.append((match[2], path[depth - 1]))
    assert sorted(found) == sorted(
        (name, error.__base__.__name__) for name, error in CLASSES.items() if error is not edgellm.EdgeLLMError
    )


def test_the_drawing_says_the_exit_codes() -> None:
    found = [match for line in DRAWN if (match := re.search(r"(\w+Error)\b.*\(exit code (\d)\)", line))]
    assert len(found) > 5
    assert all(CLASSES[match[1]].exit_code == int(match[2]) for match in found)


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_exported_and_of_the_tree(name: str) -> None:
    assert getattr(edgellm, name) is CLASSES[name]
    assert issubclass(CLASSES[name], edgellm.EdgeLLMError)
