"""Files that are written: complete or not at all, through links, with the caller's permissions; limits are told."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.core.folder import disk_trouble, replacing, writing
from gossamer.core.record import write_text
from gossamer.errors import BadInput


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o077, 0o002, 0o022], indirect=True)
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/v1").write_text("old")
    (tmp_path / "current").symlink_to("store/v1")
    (tmp_path / "future").symlink_to("store/v2")
    for name in ("current", "future"):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
    assert {file.name: file.read_text() for file in (tmp_path / "store").iterdir()} == {"v1": "new", "v2": "new"}


def test_what_fails_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="full") as caught, replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    assert f"{tmp_path / 'a'} cannot be written" in str(disk_trouble(caught.value))


def test_the_folder_that_the_user_named_is_told_not_the_file_of_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "tmpdu4f3y4f"))
    assert str(disk_trouble(refused, Path())).startswith(f"the current folder ({tmp_path}): permission denied")
    assert str(disk_trouble(refused, tmp_path)).startswith(f"{tmp_path}: permission denied")
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/x")
    assert str(disk_trouble(elsewhere, tmp_path)).startswith("/elsewhere/x: permission denied")


def test_a_folder_that_goes_while_it_is_written_to_is_told(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    with pytest.raises(BadInput, match="job is gone, while something was written there"), writing(job):
        shutil.rmtree(job)
        write_text(job / "records.json", "{}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "`ulimit -n`"),
        (OSError(errno.EFBIG, "File too large", "net.onnx"), "net.onnx cannot be written: larger than"),
        (OSError(errno.ESTALE, "Stale file handle", "net.onnx"), "net.onnx: the device reports an error"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "`ulimit -u`"),
    ],
)
def test_limits_of_the_system_are_told_with_the_remedy(error: OSError, message: str) -> None:
    assert message in str(disk_trouble(error))


def test_no_place_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/x"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    assert "set TMPDIR to a folder with space" in str(disk_trouble(caught.value))


def test_other_files_that_are_missing_are_not_the_systems_trouble() -> None:
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
