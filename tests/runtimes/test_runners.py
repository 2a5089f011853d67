"""open_runner: what each backend answers, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from clusir.errors import BackendError, ClusirError, ModelFormatError, UsageError
from clusir.runtimes import Runner, open_runner
from tests import needs


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize("batch", [1, 3])
def test_backend_runs_the_graph(tmp_path: Path, backend: str, batch: int) -> None:
    path = models.save_identity(tmp_path / "m.onnx", scale=0.5)
    image = np.random.default_rng(0).random((batch, 3, 64, 64), dtype=np.float32)
    with open_runner(path, backend=backend, device="cpu", threads=1) as runner:
        assert isinstance(runner, Runner)
        assert runner.name == f"{backend}:cpu"
        assert runner.spec == models.spec()
        out = runner.run({"image": image})
        assert set(out) == {"restored", "posterior", "gate"}
        np.testing.assert_allclose(out["restored"], image * 0.5, atol=1e-6)
        assert out["gate"].shape == (batch, sum(models.EXPERTS))
        first = out["restored"].copy()
        runner.run({"image": np.zeros_like(image)})
        np.testing.assert_array_equal(out["restored"], first)  # results are the caller's, not the runtime's buffer
        assert sum(runner.placement().values()) > 0


def test_backends_agree(tmp_path: Path) -> None:
    path = models.save_whole(tmp_path / "m.onnx")
    image = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    results = []
    for backend in ("ort", "openvino"):
        with open_runner(path, backend=backend, device="cpu") as runner:
            results.append(runner.run({"image": image}))
    for key in results[0]:
        np.testing.assert_allclose(results[0][key], results[1][key], atol=1e-5)


def test_ort_placement_names_the_provider(tmp_path: Path) -> None:
    with open_runner(models.save_identity(tmp_path / "m.onnx"), backend="ort", device="cpu") as runner:
        placement = runner.placement()
    assert set(placement) == {"CPUExecutionProvider"}
    assert placement["CPUExecutionProvider"] >= 2


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_cuda_that_is_not_there_is_an_error(tmp_path: Path, backend: str) -> None:
    import onnxruntime as ort

    if backend == "ort" and "CUDAExecutionProvider" in ort.get_available_providers():
        needs.skip("no cuda")
    path = models.save_identity(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="cuda") as caught:
        open_runner(path, backend=backend, device="cuda")
    assert "\n" not in str(caught.value)
    with pytest.warns(RuntimeWarning, match="falling back to the CPU"):
        runner = open_runner(path, backend=backend, device="cuda", fallback=True)
    assert runner.name.endswith(":cpu")


def test_cuda_provider_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu on a machine without a driver: it lists CUDA, logs a warning and opens a CPU session."""
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    real = ort.InferenceSession

    def cpu_only(path: str, options: object, providers: list[object]) -> object:
        assert providers[0][0] == "CUDAExecutionProvider"
        assert providers[0][1]["use_tf32"] == "0"
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", cpu_only)
    path = models.save_identity(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="could not start"):
        open_runner(path, backend="ort", device="cuda")
    with open_runner(path, backend="ort", device="auto") as runner:
        assert runner.name == "ort:cpu"


def test_no_warning_without_fallback(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_runner(models.save_identity(tmp_path / "m.onnx"), device="cpu").close()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("m.onnx", b"", ModelFormatError),
        ("m.onnx", b"not an onnx file at all", ModelFormatError),
        ("m.onnx", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", ModelFormatError),
        ("m.pth", b"x", UsageError),
        ("missing.onnx", None, UsageError),
    ],
)
def test_not_a_model(tmp_path: Path, name: str, content: bytes | None, error: type[Exception]) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        open_runner(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_truncated_model_is_named_so(tmp_path: Path) -> None:
    path = models.save_identity(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelFormatError, match="ends too early"):
        open_runner(path)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_model_without_metadata_and_broken_graph(tmp_path: Path, backend: str) -> None:
    path = models.save_identity(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(ModelFormatError, match="refuses"):
        open_runner(path, backend=backend)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelFormatError, match="no clusir metadata"):
        open_runner(path, backend=backend)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, backend: str) -> None:
    (tmp_path / "inner").mkdir()
    path = models.save_identity(tmp_path / "inner" / "m.onnx")
    model = onnx.load(path)
    (tmp_path / "secret").write_bytes(np.float32(0.5).tobytes())
    tensor = next(t for t in model.graph.initializer if t.name == "scale")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "../secret", "offset": "0", "length": "4"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError):
        open_runner(path, backend=backend)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_wrong_feeds_are_usage_errors(tmp_path: Path, backend: str) -> None:
    with open_runner(models.save_identity(tmp_path / "m.onnx"), backend=backend) as runner:
        with pytest.raises(UsageError, match="the model takes"):
            runner.run({"picture": np.zeros((1, 3, 64, 64), np.float32)})
        with pytest.raises(UsageError, match="1x3x32x64"):
            runner.run({"image": np.zeros((1, 3, 32, 64), np.float32)})


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_size_that_the_rule_does_not_allow_never_reaches_the_runtime(tmp_path: Path, backend: str) -> None:
    path = models.save_identity(tmp_path / "m.onnx", model_spec=models.spec(static=False))
    with open_runner(path, backend=backend) as runner:
        assert runner.run({"image": np.zeros((2, 3, 32, 48), np.float32)})["restored"].shape == (2, 3, 32, 48)
        for height, width in ((40, 32), (32, 8), (0, 16)):
            with pytest.raises(UsageError, match=rf"is {height}x{width} px, the model takes multiples of 16 px"):
                runner.run({"image": np.zeros((1, 3, height, width), np.float32)})


@pytest.mark.parametrize("static", [True, False])
def test_onnx_runtime_keeps_an_arena_for_one_size_only(tmp_path: Path, static: bool) -> None:
    path = models.save_identity(tmp_path / "m.onnx", model_spec=models.spec(static=static))
    with open_runner(path, backend="ort", device="cpu", threads=1) as runner:
        assert runner._session.get_session_options().enable_cpu_mem_arena is static


@pytest.mark.parametrize(
    ("threads", "machine", "spins"), [(1, 8, "0"), (2, 8, "0"), (3, 1, "1"), (None, 2, "0"), (None, 8, "1")]
)
def test_few_threads_of_onnx_runtime_sleep_while_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, machine: int, spins: str
) -> None:
    monkeypatch.setattr("clusir.runtimes.machine.threads.cores", lambda: machine)
    monkeypatch.setattr("clusir.runtimes.machine.threads.thread_limit", lambda: None)
    runner = open_runner(models.save_identity(tmp_path / "m.onnx", model_spec=models.spec()), "ort", "cpu", threads)
    options = runner._session.get_session_options()  # type: ignore[attr-defined]
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins


def test_openvino_keeps_compiled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSIR_CACHE", str(tmp_path / "cache"))
    path = models.save_whole(tmp_path / "m.onnx")
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    results = []
    for _ in range(2):  # the second comes out of the cache
        with open_runner(path, backend="openvino") as runner:
            results.append(runner.run({"image": image})["restored"])
    assert list((tmp_path / "cache" / "openvino").glob("*.blob"))
    np.testing.assert_array_equal(*results)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLUSIR_CACHE", str(tmp_path / "file"))
    open_runner(path, backend="openvino").close()  # no cache is no error


def test_openvino_compiles_for_one_picture_and_answers_several(tmp_path: Path) -> None:
    path = models.save_whole(tmp_path / "m.onnx")
    images = np.random.default_rng(0).random((3, 3, 64, 64), dtype=np.float32)
    with open_runner(path, backend="openvino", threads=1) as runner:
        assert runner._compiled.inputs[0].partial_shape.is_static
        one = [runner.run({"image": image[None]})["restored"] for image in images]
        together = runner.run({"image": images})["restored"]
        np.testing.assert_allclose(np.concatenate(one), together, atol=1e-6)
        np.testing.assert_array_equal(runner.run({"image": images[:1]})["restored"], one[0])
    with open_runner(models.save_router(tmp_path / "r.onnx"), backend="openvino", threads=1) as router:
        assert router._compiled.inputs[0].partial_shape[0].is_dynamic  # its looks come together


def test_options_are_checked(tmp_path: Path) -> None:
    path = models.save_identity(tmp_path / "m.onnx")
    for options in (
        {"backend": "tensorrt"},
        {"device": "tpu"},
        {"threads": 0},
        {"backend": "torch"},
        {"graph": "tile"},
    ):
        with pytest.raises(UsageError):
            open_runner(path, **options)


def test_importing_runtimes_imports_no_runtime() -> None:
    code = (
        "import sys, clusir.runtimes as r, clusir.runtimes.runners.opening, clusir.runtimes.runners.ort,"
        " clusir.runtimes.runners.openvino, clusir.runtimes.runners.torch; r.open_runner;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_onnxruntime_says_of_a_failure_is_in_the_error_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = models.save_identity(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["image", "seven"], ["posterior_of_seven"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7], np.int64), "seven"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("posterior_of_seven", onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)
    with (
        open_runner(path, backend="ort", device="cpu") as runner,
        pytest.raises(ClusirError, match=r"m\.onnx: .*Reshape"),
    ):
        runner.run({"image": np.zeros((1, 3, 64, 64), np.float32)})
    assert capfd.readouterr().err == ""
