"""Fourier transforms of any length, axis and direction are NumPy's; mel filter banks are evaluated when built."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import FLOAT, INT64, model, one_node, value

from tvmbridge import backend
from tvmbridge.errors import ModelError, UnboundValueError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler


def transform(x: np.ndarray, axis: int | None = None, length: int | None = None, **attributes: int) -> onnx.ModelProto:
    """A DFT of op-set 20; x [..., 1 or 2]."""
    operands = [None if length is None else np.array(length), *([] if axis is None else [np.array(axis)])]
    number = helper.np_dtype_to_tensor_dtype(x.dtype)
    return one_node("DFT", *operands, shape=x.shape, dtype=number, opset=20, **attributes)


def drawn(shape: tuple[int, ...], dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def complex_of(x: np.ndarray) -> np.ndarray:
    return x[..., 0] + (1j * x[..., 1] if x.shape[-1] == 2 else 0)


def parts_of(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1)


def assert_close(output: np.ndarray, expected: np.ndarray, dtype: str = "f4") -> None:
    assert output.dtype == dtype and output.shape == expected.shape
    tolerance = {"f2": 3e-3, "f4": 3e-7, "f8": 1e-13}[dtype] * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(output, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("length", [1, 7, 60, 131, 400, 1024])
def test_lengths_prime_and_composite_forward_and_back(length: int) -> None:
    x = drawn((2, length, 2))
    (output,) = backend.run_model(transform(x), [x])
    assert_close(output, parts_of(np.fft.fft(complex_of(x).astype(complex))))
    (output,) = backend.run_model(transform(x, inverse=1), [x])
    assert_close(output, parts_of(np.fft.ifft(complex_of(x).astype(complex))))


@pytest.mark.parametrize("axis", [0, 1, -2, -4])
def test_any_axis_is_transformed(axis: int) -> None:
    x = drawn((3, 5, 7, 1))
    (output,) = backend.run_model(transform(x, axis), [x])
    assert_close(output, parts_of(np.fft.fft(x[..., 0], axis=axis if axis >= 0 else axis + 1)))


@pytest.mark.parametrize("length", [5, 8, 12])
def test_a_signal_is_cut_or_padded_to_the_length(length: int) -> None:
    x = drawn((2, 8, 1))
    (output,) = backend.run_model(transform(x, length=length, onesided=1), [x])
    assert_close(output, parts_of(np.fft.rfft(x[..., 0], length)))


@pytest.mark.parametrize("length", [None, 7, 12, 300])
def test_a_onesided_spectrum_gives_a_real_signal(length: int | None) -> None:
    x = drawn((2, 5, 2))
    (output,) = backend.run_model(transform(x, length=length, onesided=1, inverse=1), [x])
    assert_close(output, np.fft.irfft(complex_of(x), length)[..., None])


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_floats_are_transformed(dtype: str) -> None:
    x = drawn((2, 12, 2), dtype)
    (output,) = backend.run_model(transform(x), [x])
    assert_close(output, parts_of(np.fft.fft(complex_of(x.astype("f8")))), dtype)


def test_the_axis_of_older_op_sets_is_an_attribute() -> None:
    x = drawn((3, 5, 7, 1))
    (output,) = backend.run_model(one_node("DFT", shape=x.shape, axis=2, opset=17), [x])
    assert_close(output, parts_of(np.fft.fft(x[..., 0], axis=2)))
    (output,) = backend.run_model(one_node("DFT", shape=x.shape, opset=17), [x])
    assert_close(output, parts_of(np.fft.fft(x[..., 0], axis=1)))


def spectrogram(x: np.ndarray, step: int, window: np.ndarray | None, length: int | None, onesided: int | None = None):
    operands = [np.array(step), window, *([] if length is None else [np.array(length)])]
    return one_node("STFT", *operands, shape=x.shape, **({} if onesided is None else {"onesided": onesided}))


@pytest.mark.parametrize(("kinds", "onesided"), [(1, None), (1, 0), (2, 0)])
def test_frames_are_weighted_and_transformed(kinds: int, onesided: int | None) -> None:
    x, window = drawn((2, 53, kinds)), np.hanning(16).astype("f4")
    (output,) = backend.run_model(spectrogram(x, 5, window, None, onesided), [x])
    frames = np.stack([complex_of(x)[:, start : start + 16] * window for start in range(0, 38, 5)], 1)
    expected = np.fft.fft(frames)[..., : 9 if onesided is None else 16]
    assert_close(output, parts_of(expected))


def test_frames_without_a_window_are_as_long_as_is_said() -> None:
    x = drawn((1, 40, 1))
    (output,) = backend.run_model(spectrogram(x, 8, None, 16), [x])
    assert_close(output, parts_of(np.fft.rfft(np.stack([x[:, start : start + 16, 0] for start in (0, 8, 16, 24)], 1))))


def test_a_window_of_another_length_than_the_frames_is_refused() -> None:
    with pytest.raises(ModelError, match="STFT"):
        import_onnx(spectrogram(drawn((1, 40, 1)), 8, np.ones(12, "f4"), 16))


NAMES = ["bins", "length", "rate", "low", "high"]


def test_a_mel_filter_bank_is_evaluated_when_built() -> None:
    node = helper.make_node("MelWeightMatrix", NAMES, ["m"])
    product = helper.make_node("MatMul", ["x", "m"], ["y"])
    kinds = [INT64, INT64, INT64, FLOAT, FLOAT]
    inputs = [value(name, (), kind) for name, kind in zip(NAMES, kinds, strict=True)]
    graph = model([node, product], [value("x", (2, 9)), *inputs], [value("y", (2, 8), TensorProto.FLOAT)])
    with pytest.raises(UnboundValueError) as caught:
        import_onnx(graph)
    assert set(caught.value.inputs) <= set(NAMES)
    given = dict(zip(NAMES, [8, 16, 8192, 0.0, 4096.0], strict=True))
    arrays = {name: np.array(number, "f4" if name in ("low", "high") else "i8") for name, number in given.items()}
    imported = import_onnx(graph, values=arrays)
    assert [spec.name for spec in imported.signature.inputs] == ["x"]
    assert "matmul" in imported.module.script()
