"""verify --bisect from end to end: a compiler that is wrong, or crashes, on one operator, and what the command says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import tests.onnx_models as models

pytestmark = pytest.mark.compiler

# Of the interpreter that compiles: what `lower` is given has a sigmoid for every tanh, or it crashes at one.
WRONG = """
import os
if os.environ.get("TVMBRIDGE_ISOLATED_BY"):
    import dataclasses
    import tvm
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator
    import tvmbridge.lowering as lowering

    @mutator
    class Confuse(PyExprMutator):
        def visit_call_(self, call):
            call = self.visit_expr_post_order(call)
            if call.op == tvm.ir.Op.get("relax.tanh"):
                return self.builder_.normalize({})
            return call

    right = lowering.lower

    def wrong(model, target):
        confused = Confuse(model.module)
        main = confused.visit_expr(model.module["main"])
        module = confused.builder_.get()
        module.update_func(module.get_global_var("main"), main)
        return right(dataclasses.replace(model, module=module), target)

    lowering.lower = wrong
"""
SIGMOID, CRASH = "relax.op.sigmoid(call.args[0])", "os.abort()"


def network() -> onnx.ModelProto:
    """x [batch, 7] → y through a tanh between two products."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["/p"], name="first"),
        helper.make_node("Tanh", ["/p"], ["/t"], name="squash"),
        helper.make_node("MatMul", ["/t", "b"], ["q"], name="second"),
        helper.make_node("Relu", ["q"], ["y"], name="relu"),
    ]
    weights = {"a": models.random_weight((7, 11), 1), "b": models.random_weight((11, 5), 2)}
    return models.model(nodes, [models.value("x", ("batch", 7))], [models.value("y", ("batch", 5))], weights)


@pytest.fixture
def run(tmp_path):
    onnx.save(network(), tmp_path / "net.onnx")

    def call(*arguments: str, tanh: str | None = None) -> tuple[int, str, str]:
        search = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        if tanh is not None:
            (tmp_path / "site").mkdir(exist_ok=True)
            (tmp_path / "site" / "sitecustomize.py").write_text(WRONG.format(tanh))
            search.insert(0, str(tmp_path / "site"))
        done = subprocess.run(
            [sys.executable, "-m", "tvmbridge", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def test_a_right_model_passes_and_nothing_is_written(run, tmp_path):
    code, out, err = run("verify", "--bisect", "net.onnx", "--dim", "batch=3")
    assert code == 0 and "fresh build of the model is right" in out
    assert err.count("4 nodes, 'first' to 'relu': right") == 2
    assert not (tmp_path / "net-reproduction").exists()


def test_a_wrong_operator_is_found_and_what_is_written_shows_it_again(run, tmp_path):
    code, out, err = run("verify", "--bisect", "net.onnx", "--dim", "batch=3", tanh=SIGMOID)
    assert code == 1 and "4 nodes, 'first' to 'relu': differs" in err
    assert "Tanh 'squash' (op-set 17): wrong by itself" in out and "reads /p: float32[3, 11]" in out
    folder = tmp_path / "net-reproduction"
    (command,) = [line.partition(": ")[2] for line in out.splitlines() if line.startswith("wrote")]
    assert command == "tvmbridge verify --bisect net-reproduction/model.onnx -i net-reproduction/inputs.npz"
    written = onnx.load(folder / "model.onnx")
    assert [node.op_type for node in written.graph.node] == ["Tanh"]
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "expected.npz") as expected:
        reference = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        (result,) = reference.run(None, dict(inputs))
        np.testing.assert_array_equal(result, expected["/t"])
    code, out, _ = run(*command.split()[1:], "--json", tanh=SIGMOID)
    again = json.loads(out)
    assert code == 1 and again["passed"] is False and again["bisect"]["finding"]["nodes"][0]["name"] == "squash"
    assert again["bisect"]["finding"]["status"] == "differs" and again["bisect"]["reproduction"] == "model-reproduction"


def test_an_operator_on_which_the_compiler_crashes_is_found(run, tmp_path):
    code, out, _ = run(
        *("verify", "--bisect", "net.onnx", "--shape", "x=3x7", "--json", "--junit", "report.xml", "-o", "made/here"),
        tanh=CRASH,
    )
    found = json.loads(out)["bisect"]
    assert code == 1 and found["whole"]["status"] == "fails" and found["reproduction"] == "made/here"
    assert [node["name"] for node in found["finding"]["nodes"]] == ["squash"]
    assert "SIGABRT" in found["finding"]["problem"] and found["finding"]["tensors"] == ["/t"]
    assert "SIGABRT" in (tmp_path / "report.xml").read_text()
    assert (tmp_path / "made" / "here" / "model.onnx").exists()


@pytest.mark.slow
def test_a_bundle_that_differs_is_searched_by_building_its_model_again(run, tmp_path):
    other = network()
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(models.random_weight((7, 11), 9), "a"))
    onnx.save(other, tmp_path / "other.onnx")
    built = ("build", "net.onnx", "--dim", "batch=3", "--target", "native")
    assert run(*built, "--trials", "2")[0] == 0
    assert run("verify", "net.tvmb", "net.onnx", "--bisect", "--json")[0] == 0
    code, out, _ = run("verify", "net.tvmb", "other.onnx", "--bisect")
    assert code == 1 and "NO: output" in out and "a fresh build of the model is right" in out
    code, out, _ = run("verify", "net.tvmb", "other.onnx", "--bisect", "--json", tanh=SIGMOID)
    answer = json.loads(out)
    assert code == 1 and not answer["passed"] and answer["variants"][0]["variant"] == "native"
    assert [node["op_type"] for node in answer["bisect"]["finding"]["nodes"]] == ["Tanh"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("net.onnx",), "a bundle and the model"),
        (("a.tvmb", "b.tvmb", "net.onnx"), "a bundle and the model"),
        (("a.tvmb", "net.onnx", "-o", "x"), "needs --bisect"),
        (("a.tvmb", "net.onnx", "--bisect", "--dim", "batch=3"), "--dim"),
        (("net.onnx", "--bisect", "--variant", "native"), "--target"),
    ],
)
def test_arguments_that_do_not_fit_are_wrong_usage(run, arguments, words):
    code, _, err = run("verify", *arguments)
    assert code == 2 and words in err


def test_a_folder_of_somebody_else_s_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_text("mine")
    code, _, err = run("verify", "--bisect", "net.onnx", "--dim", "batch=3", "-o", "mine")
    assert code == 1 and "holds other files" in err and (tmp_path / "mine" / "model.onnx").read_text() == "mine"
