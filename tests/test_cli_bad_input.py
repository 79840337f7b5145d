"""Bad input: exit code 1, an error that says what, which and how to fix it, no traceback, no half-written file."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tests.onnx_models as models
import tvmbridge
from tvmbridge.cli import main

pytestmark = pytest.mark.compiler


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(folder, capsys):
    """Run a command that must fail, and leave nothing new behind: what it says."""

    def call(*arguments: str, status: int = 1) -> str:
        before = {path: path.stat().st_size for path in folder.rglob("*")}
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        _, err = capsys.readouterr()
        assert ended.value.code == status, err
        assert "Traceback" not in err
        after = {path: path.stat().st_size for path in folder.rglob("*")}
        assert after == before, "files were made or changed"
        return err

    return call


def save(proto: onnx.ModelProto, name: str = "m.onnx") -> bytes:
    onnx.save(proto, name)
    with open(name, "rb") as file:
        return file.read()


def test_a_missing_model(fails):
    assert "nothing.onnx" in fails("build", "nothing.onnx", "--target", "native")


@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", bytes(range(256)) * 10], ids=["empty", "text", "bytes"]
)
def test_a_file_that_is_no_model(fails, folder, content):
    (folder / "m.onnx").write_bytes(content)
    err = fails("build", "m.onnx", "--target", "native")
    assert "m.onnx" in err and ("empty" in err if not content else "ONNX" in err)


def test_a_truncated_model(fails, folder):
    data = save(models.conv_bn_relu())
    (folder / "m.onnx").write_bytes(data[: len(data) * 2 // 3])
    assert "m.onnx" in fails("build", "m.onnx", "--target", "native")


def test_a_model_whose_external_data_is_missing(fails, folder):
    onnx.save(models.mlp(), "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (folder / "m.data").unlink()
    assert "m.data" in fails("build", "m.onnx", "--target", "native")


def test_unknown_operators_are_all_named_with_their_nodes(fails):
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first", domain="com.example"),
        helper.make_node("Defenestrate", ["a"], ["y"], name="second", domain="com.example"),
    ]
    shape = [2, 3]
    save(models.model(nodes, [models.value("x", shape)], [models.value("y", shape)], domains={"com.example": 1}))
    err = fails("build", "m.onnx", "--target", "native")
    assert all(word in err for word in ("Frobnicate", "Defenestrate", "first", "second", "com.example"))


def test_unbound_dimensions_are_all_listed_with_a_command_line(fails):
    node = helper.make_node("Add", ["x", "z"], ["y"])
    inputs = [models.value("x", ["batch", "width"]), models.value("z", ["batch", "width"])]
    save(models.model([node], inputs, [models.value("y", ["batch", "width"])]))
    err = fails("build", "m.onnx", "--target", "native")
    assert "batch" in err and "width" in err and "--dim" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "version: 1\ntargets:\n  a: {kind: arm, cpu: cortex-a720x}\n",
            ["targets.a.cpu", "cortex-a720x", "cortex-a720"],
        ),
        ("version: 1\ntargets:\n  a: {kind: arm, colour: red}\n", ["targets.a", "colour"]),
        ("version: 1\ntargets:\n  a: {kind: abacus}\n", ["targets.a.kind", "abacus", "x86"]),
        ("version: 1\ntargets: [", ["targets.yaml"]),
    ],
    ids=["cpu", "key", "kind", "yaml"],
)
def test_a_wrong_targets_file_is_refused_with_the_key_and_what_is_allowed(fails, folder, text, words):
    save(models.mlp())
    (folder / "targets.yaml").write_text(text)
    err = fails("build", "m.onnx")
    assert all(word in err for word in ["targets.yaml", *words])


def test_a_target_that_the_file_does_not_declare_lists_those_it_does(fails, folder):
    save(models.mlp())
    (folder / "targets.yaml").write_text("version: 1\ntargets:\n  edge: {kind: arm}\n")
    err = fails("build", "m.onnx", "--target", "egde")
    assert "egde" in err and "edge" in err


@pytest.mark.parametrize("output", ["no/such/folder/m.tvmb", "taken", "/proc/m.tvmb"])
def test_an_output_that_cannot_be_written_is_said_before_any_work(fails, folder, output):
    save(models.mlp())
    (folder / "taken").mkdir()
    assert output in fails("build", "m.onnx", "--target", "native", "--no-tune", "-o", output)


@pytest.mark.parametrize("output", ["m.onnx", "notes.txt"])
def test_an_output_that_would_replace_something_else_is_refused(fails, folder, output):
    save(models.mlp())
    (folder / "notes.txt").write_text("mine")
    assert output in fails("build", "m.onnx", "--target", "native", "--no-tune", "-o", output)


def test_an_output_without_a_name_is_wrong_usage(fails):
    save(models.mlp())
    assert "-o" in fails("build", "m.onnx", "--target", "native", "-o", "", status=2)


def test_an_unknown_name_to_accept_is_refused_before_any_work(fails):
    save(models.mlp())
    err = fails("build", "m.onnx", "--target", "native", "--no-tune", "--accept-inaccurate", "nativ")
    assert "nativ" in err and "native" in err


def test_wrong_usage_as_json_is_json(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["build", "--json"])
    assert ended.value.code == 2 and json.loads(capsys.readouterr().out)["error"]["kind"] == "UsageError"


def test_output_that_cannot_be_written_is_an_error_in_one_line(folder):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tvmbridge", "targets", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr


def test_where_only_ascii_can_be_written_the_table_is_printed_all_the_same(folder):
    command = [sys.executable, "-m", "tvmbridge", "targets", "--target", "arm"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert re.search(r"^arm +arm +generic +4 +none +(–|\\u2013)$", done.stdout, re.MULTILINE)


def test_modules_of_the_current_folder_are_not_imported_by_our_own_processes(folder):
    save(models.mlp())
    (folder / "select.py").write_text("raise SystemExit('the wrong select')")
    # As the installed command starts: without the current folder on the path.
    start = "import sys; sys.path[:] = filter(None, sys.path); from tvmbridge.cli import main; main(sys.argv[1:])"
    build = ["build", "m.onnx", "--target", "native", "--trials", "1", "-o", "m.tvmb"]
    environment = {**os.environ, "PYTHONPATH": str(Path(tvmbridge.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", start, *build], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_space_for_the_bundle_leaves_the_old_one_as_it_was(folder):
    save(models.mlp())
    (folder / "m.tvmb").write_bytes(b"PK\x03\x04 the bundle of yesterday")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # less than TVM's runtime library

    command = [sys.executable, "-m", "tvmbridge", "build", "m.onnx", "--target", "native", "--no-tune"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "write" in done.stderr
    assert (folder / "m.tvmb").read_bytes() == b"PK\x03\x04 the bundle of yesterday"
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "m.tvmb"]


def test_a_log_in_a_foreign_format_is_left_alone(fails, folder):
    save(models.mlp())
    (folder / "m.tune.jsonl").write_text('{"somebody": "else\'s"}\n')
    err = fails("build", "m.onnx", "--target", "native", "--no-tune")
    assert "m.tune.jsonl" in err


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    onnx.save(models.two_outputs(), folder / "m.onnx")
    command = [sys.executable, "-m", "tvmbridge", "build", "m.onnx", "--target", "native", "--no-tune"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder


class TestBundle:
    """What run and its kin say to bundles and inputs that are wrong."""

    @pytest.fixture(autouse=True)
    def bundle(self, built, folder):
        for name in ("m.onnx", "m.tvmb"):
            shutil.copy(built / name, folder / name)
        self.spec = models.two_outputs().graph.input[0]
        self.shape = [axis.dim_value for axis in self.spec.type.tensor_type.shape.dim]

    @pytest.mark.parametrize("command", ["run", "bench", "inspect", "check", "verify"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "foreign", "truncated"])
    def test_a_damaged_bundle_is_refused_by_every_command(self, fails, folder, command, damage):
        data = (folder / "m.tvmb").read_bytes()
        contents = {"empty": b"", "foreign": b"PK\x03\x04 something else", "truncated": data[: len(data) // 2]}
        if damage in contents:
            (folder / "bad.tvmb").write_bytes(contents[damage])
        np.savez("in.npz", x=np.zeros(self.shape, np.float32))
        more = {"run": ["-i", "in.npz"], "verify": ["m.onnx"]}.get(command, [])
        assert "bad.tvmb" in fails(command, "bad.tvmb", *more)

    def test_a_wrong_name_shape_or_dtype_says_what_was_expected(self, fails):
        name = self.spec.name
        right = np.zeros(self.shape, np.float32)
        np.savez("name.npz", **{f"{name}x": right})
        np.savez("shape.npz", **{name: np.zeros([axis + 1 for axis in self.shape], np.float32)})
        np.savez("dtype.npz", **{name: np.full(self.shape, "text")})
        assert f"{name}x" in fails("run", "m.tvmb", "-i", "name.npz")
        assert str(self.shape[0] + 1) in fails("run", "m.tvmb", "-i", "shape.npz")
        assert "float32" in fails("run", "m.tvmb", "-i", "dtype.npz")

    def test_inputs_that_are_no_npz_file(self, fails, folder):
        (folder / "in.npz").write_text("no arrays")
        assert "in.npz" in fails("run", "m.tvmb", "-i", "in.npz")
        assert "gone.npz" in fails("run", "m.tvmb", "-i", "gone.npz")

    @pytest.mark.parametrize("output", ["m.tvmb", "in.npz"])
    def test_outputs_do_not_replace_what_they_were_made_from(self, fails, output):
        np.savez("in.npz", **{self.spec.name: np.zeros(self.shape, np.float32)})
        assert output in fails("run", "m.tvmb", "-i", "in.npz", "-o", output)

    def test_an_unknown_variant_lists_those_there_are(self, fails):
        np.savez("in.npz", **{self.spec.name: np.zeros(self.shape, np.float32)})
        err = fails("run", "m.tvmb", "-i", "in.npz", "--variant", "vax")
        assert "vax" in err and "native" in err


def test_an_error_as_json_has_kind_message_and_hint(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["build", "nothing.onnx", "--target", "native", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert ended.value.code == 1 and error["kind"] == "ModelFileError" and "nothing.onnx" in error["message"]
    assert "hint" in error


def test_an_unsupported_dtype_is_refused_by_name(fails):
    node = helper.make_node("Identity", ["x"], ["y"])
    kind = TensorProto.STRING
    save(models.model([node], [models.value("x", [2], kind)], [models.value("y", [2], kind)]))
    assert "string" in fails("build", "m.onnx", "--target", "native").lower()
