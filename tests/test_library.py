"""The library cache: verified before each use, and no folder or file that others could change is trusted."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from tvmbridge.cache import cache_folder, write_cached
from tvmbridge.runtime.library import extracted_library


def test_the_cache_folder_follows_the_environment():
    assert cache_folder({"TVMBRIDGE_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/c")
    assert cache_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/tvmbridge")
    assert cache_folder({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/tvmbridge")


def test_a_library_is_written_once_and_again_when_its_bytes_were_changed(tmp_path):
    folder, data = tmp_path / "a" / "cache", b"library" * 100
    with extracted_library(data, folder) as path:
        assert path == folder / f"{hashlib.sha256(data).hexdigest()}.so"
        first = path.stat()
    with extracted_library(data, folder) as path:
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    path.write_bytes(b"LIBRARY" * 100)
    with extracted_library(data, folder) as path:
        assert path.read_bytes() == data
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o700]


def test_a_cache_that_others_may_write_or_that_is_a_link_or_a_file_is_not_used(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").write_bytes(b"")
    for name in ("open", "link", "file"):
        assert write_cached(tmp_path / name, "x.so", b"data") is None
        with extracted_library(b"data", tmp_path / name) as path:
            assert path.read_bytes() == b"data" and tmp_path not in path.parents
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert not path.parent.exists()
    assert [list((tmp_path / name).iterdir()) for name in ("open", "mine")] == [[], []]


def test_a_cached_link_or_a_file_that_others_may_write_is_replaced(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"data")
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / "x.so").symlink_to(target)
    path = write_cached(folder, "x.so", b"data")
    assert path is not None and not path.is_symlink()
    path.chmod(0o777)
    again = write_cached(folder, "x.so", b"data")
    assert again is not None and stat.S_IMODE(again.stat().st_mode) == 0o700
    assert target.read_bytes() == b"data"


def test_a_cache_of_another_user_is_not_used(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert write_cached(folder, "x.so", b"data") is None
