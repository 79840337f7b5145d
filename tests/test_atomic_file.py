"""Files that take their name when they are whole: nothing half-written is seen, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tvmbridge.atomic_file import replacing

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from tvmbridge.atomic_file import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"half of it")
    stream.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def start_writer(path: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def make_old(folder: Path) -> None:
    """As if everything there had been written an hour ago."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


def test_the_content_appears_at_the_end_with_the_permissions_of_the_umask(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    old = os.umask(0o027)
    try:
        with replacing(path) as stream:
            stream.write(b"new")
            assert path.read_bytes() == b"old"
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_mode_is_that_of_the_file_from_its_first_byte_on(mode, tmp_path):
    with replacing(tmp_path / "file", mode) as stream:
        assert stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == mode
        stream.write(b"secret")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_failure_changes_nothing_and_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writer = start_writer(path)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    make_old(tmp_path)
    with replacing(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_what_another_writer_is_writing_stays(tmp_path):
    path = tmp_path / "file"
    writer = start_writer(path)
    try:
        make_old(tmp_path)
        with replacing(path) as stream:
            stream.write(b"new")
        assert len(os.listdir(tmp_path)) == 2
    finally:
        writer.kill()
        writer.wait()


def test_files_of_others_names_and_links_are_not_removed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    (tmp_path / ".file.0123456789abcdef.tmp").symlink_to(victim)
    (tmp_path / ".file.backup.tmp").write_bytes(b"kept")
    (tmp_path / ".files.0123456789abcdef.tmp").write_bytes(b"kept")
    make_old(tmp_path)
    before = set(os.listdir(tmp_path))
    with replacing(tmp_path / "file") as stream:
        stream.write(b"new")
    assert set(os.listdir(tmp_path)) == before | {"file"}
    assert victim.read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["é" * 127, "𝄞" * 63])
def test_a_name_as_long_as_the_system_allows_is_written(name, tmp_path):
    with replacing(tmp_path / name) as stream:
        stream.write(b"new")
    assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize("path", ["", ".", "..", "/"])
def test_a_folder_is_an_error_of_the_system_before_anything_is_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError), replacing(Path(path)):
        pytest.fail("nothing is to be written")


def test_a_missing_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "file"):
        pass
