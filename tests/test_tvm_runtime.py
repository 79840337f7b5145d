"""TVM's runtime for another machine: out of the wheel made for it, checked by digest, fetched once, or refused."""

from __future__ import annotations

import hashlib
import random
import threading
import zipfile
from pathlib import Path

import pytest
import tvm

from tvmbridge.codegen import tvm_runtime
from tvmbridge.codegen.tvm_runtime import TVM_VERSION, WHEEL_VARIABLE, WHEELS, PublishedWheel, runtime_folder
from tvmbridge.errors import ToolchainError
from tvmbridge.host import detect_host

pytestmark = pytest.mark.compiler

HERE = detect_host().machine
ELSEWHERE = next(machine for machine in WHEELS if machine != HERE)
NAMES = sorted(WHEELS[ELSEWHERE].libraries)
LIBRARIES = {name: random.Random(name).randbytes(5000) for name in NAMES}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, libraries: dict[str, bytes]) -> Path:
    """A wheel that pip takes for the pinned apache-tvm's, with these libraries."""
    path = folder / f"apache_tvm-{TVM_VERSION}-py3-none-{WHEELS[ELSEWHERE].platform}.whl"
    facts = f"apache_tvm-{TVM_VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in libraries.items():
            archive.writestr(f"tvm/lib/{name}", data)
        archive.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: apache-tvm\nVersion: {TVM_VERSION}\n")
        archive.writestr(f"{facts}/WHEEL", f"Wheel-Version: 1.0\nTag: py3-none-{WHEELS[ELSEWHERE].platform}\n")
        archive.writestr(f"{facts}/RECORD", "")
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel that counts as the published one; pip sees it and no index, and the cache is empty."""
    (tmp_path / "wheels").mkdir()
    path = write_wheel(tmp_path / "wheels", LIBRARIES)
    digests = {name: sha256(data) for name, data in LIBRARIES.items()}
    data = path.read_bytes()
    published = PublishedWheel(WHEELS[ELSEWHERE].platform, sha256(data), len(data), digests)
    monkeypatch.setattr(tvm_runtime, "WHEELS", {ELSEWHERE: published})
    monkeypatch.setenv("TVMBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    return path


def fetched(folder: Path, on_fetch: tvm_runtime.OnFetch | None = None) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    return {path.name: path.read_bytes() for path in runtime_folder(ELSEWHERE, folder, on_fetch).iterdir()}


def refuse_to_download(*_arguments: object) -> Path:
    raise AssertionError("it is here already")


def test_the_digests_are_those_of_the_version_that_is_pinned() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"apache-tvm=={TVM_VERSION}"' in project
    installed = Path(tvm.__file__).parent / "lib"
    assert {name: sha256((installed / name).read_bytes()) for name in NAMES} == WHEELS[HERE].libraries


def test_this_machines_runtime_is_the_installed_one(tmp_path: Path) -> None:
    assert runtime_folder(HERE, tmp_path) == Path(tvm.__file__).parent / "lib"
    assert list(tmp_path.iterdir()) == []


def test_pip_fetches_the_wheel_once_and_says_how_far_it_is(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    assert fetched(tmp_path / "first", lambda *step: told.append(step)) == LIBRARIES
    size_bytes = wheel.stat().st_size
    assert told[0] == (0, size_bytes)
    assert told[-1] == (size_bytes, size_bytes)
    monkeypatch.setattr(tvm_runtime, "_download", refuse_to_download)
    assert fetched(tmp_path / "first") == fetched(tmp_path / "second") == LIBRARIES


def test_a_library_that_changed_in_the_cache_is_fetched_again(wheel: Path, tmp_path: Path) -> None:
    fetched(tmp_path / "first")
    cached = tmp_path / "cache" / f"{sha256(LIBRARIES[NAMES[0]])}.so"
    cached.write_bytes(LIBRARIES[NAMES[1]])
    assert fetched(tmp_path / "second") == LIBRARIES
    assert cached.read_bytes() == LIBRARIES[NAMES[0]]


def test_without_a_cache_that_can_be_written_it_is_fetched_all_the_same(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its way")
    assert fetched(tmp_path / "first") == LIBRARIES
    assert (tmp_path / "cache").read_text() == "a file in its way"


def test_of_two_builds_at_once_one_fetches_and_the_other_waits(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, both = [], threading.Barrier(2)

    def download(*_arguments: object) -> Path:
        calls.append(threading.get_ident())
        return wheel

    monkeypatch.setattr(tvm_runtime, "_download", download)
    results = []

    def work(index: int) -> None:
        both.wait()
        results.append(fetched(tmp_path / str(index)))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [LIBRARIES, LIBRARIES]
    assert len(calls) == 1


def test_a_machine_without_a_network_takes_the_wheel_that_the_environment_names(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm_runtime, "_download", refuse_to_download)
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    assert fetched(tmp_path / "first") == LIBRARIES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "FileNotFoundError"),
        (lambda path: path.write_bytes(b"no wheel"), "BadZipFile"),
        (lambda path: path.write_bytes(path.read_bytes()[:6000]), "BadZipFile"),
        (lambda path: write_wheel(path.parent, {}), "KeyError"),
        (
            lambda path: write_wheel(path.parent, {**LIBRARIES, NAMES[2]: b"another"}),
            f"{NAMES[2]} is not that of apache-tvm {TVM_VERSION} for {ELSEWHERE}",
        ),
    ],
)
def test_a_wheel_that_is_not_the_published_one_is_refused_by_name(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change, said: str
) -> None:
    change(wheel)
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    with pytest.raises(ToolchainError) as caught:
        fetched(tmp_path / "first")
    assert said in caught.value.message and str(wheel) in caught.value.message
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "first").iterdir()) == []


def test_what_pip_says_is_passed_on_with_the_way_to_do_without_a_network(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.unlink()
    with pytest.raises(ToolchainError, match=f"no TVM runtime for {ELSEWHERE}: pip: No matching") as caught:
        fetched(tmp_path / "first")
    assert WHEEL_VARIABLE in str(caught.value.hint) and WHEELS[ELSEWHERE].platform in str(caught.value.hint)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ToolchainError, match="this Python has no pip"):
        fetched(tmp_path / "first")


def test_pip_refuses_a_wheel_with_another_digest(wheel: Path, tmp_path: Path) -> None:
    write_wheel(wheel.parent, {**LIBRARIES, "more.so": b""})
    with pytest.raises(ToolchainError, match="pip: "):
        fetched(tmp_path / "first")
    assert list(tmp_path.glob("cache/*.so")) == []


def test_an_apache_tvm_whose_digests_nobody_has_written_down_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm, "__version__", "0.99.0")
    with pytest.raises(ToolchainError, match=r"0\.99\.0 is installed"):
        fetched(tmp_path / "first")
