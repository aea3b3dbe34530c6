"""What is installed: one top-level package, with all of its parts."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_edgellm_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"edgellm", f"{wheel.name.split('-py3')[0]}.dist-info"}
    files = {name for name in names if name.startswith("edgellm/")}
    expected = {"edgellm/py.typed"} | {
        f"edgellm/{path.relative_to(ROOT / 'edgellm')}" for path in (ROOT / "edgellm").rglob("*.py")
    }
    for folder in ("kernels", "converters", "apps"):
        expected |= {f"edgellm/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    assert files == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
