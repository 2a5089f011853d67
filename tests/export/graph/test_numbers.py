"""Numbers that a network takes beside the picture: inputs of every file, with a default and a range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from theirs import KERNEL, constant, conv, expected, rng, write

from clusir.errors import UsageError
from clusir.export.adopt import Adoption, AdoptionConfig, adopt
from clusir.export.formats.ort_mobile import write_ort_mobile
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_file import Description, read_onnx
from clusir.runtimes import Restorer
from clusir.runtimes.runners.quiet import import_openvino

openvino = import_openvino()  # imported plainly, it would report that

Picture = NDArray[np.float32]
PICTURE = rng.random((64, 90, 3), dtype=np.float32)


def adopted(source: Path, values: dict[str, float], limits: dict[str, tuple[float, float]] | None = None) -> Adoption:
    told = Description(values=values, limits=limits or {})
    return adopt(source, source.with_name("ours.onnx"), AdoptionConfig(told, tile_px=64, halo_px=8))


def denoiser(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """A network that adds a map of its noise level, and another number, to what it makes of the picture."""
    nodes = [
        conv("x", "a"),
        helper.make_node("Cast", ["strength"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "real"], ["b"]),
        helper.make_node("Add", ["b", "sigma"], ["y"]),
    ]
    more = [
        helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [None, 1, None, None]),
        helper.make_tensor_value_info("strength", kind, [1]),
    ]
    return write(path, nodes, [constant("k", KERNEL)], more=more)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_further_inputs_are_set_when_it_runs(tmp_path: Path, kind: int) -> None:
    source = denoiser(tmp_path / "theirs.onnx", kind)
    made = adopted(source, {"sigma": 0.125, "strength": 1})
    assert [backend for backend, what, _ in made.agreements if what == "other settings"] == ["ort", "openvino"]
    plain = expected(PICTURE.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    for settings, want in (({}, plain + 0.125), ({"sigma": 0.25}, plain + 0.25),
                           ({"sigma": -0.25, "strength": 2}, 2 * plain - 0.25)):  # fmt: skip
        for backend in ("ort", "openvino"):
            with Restorer(made.path, backend=backend, threads=1, settings=settings) as restorer:
                np.testing.assert_allclose(restorer.restore(PICTURE), want.clip(0, 1), atol=1e-5)


def test_settings_that_nothing_takes_are_refused(tmp_path: Path) -> None:
    made = adopted(denoiser(tmp_path / "theirs.onnx"), {"sigma": 0.125, "strength": 1}, {"sigma": (0, 75)})
    for backend in ("ort", "openvino"):
        with pytest.raises(
            UsageError, match=r"--set noise: ours.onnx has no such input; it has sigma \(0..75\), strength"
        ):
            Restorer(made.path, backend=backend, settings={"noise": 1})
        for wrong in (float("nan"), 76, -0.1):
            with pytest.raises(UsageError, match=r"--set sigma=.*: it is 0..75 in ours.onnx"):
                Restorer(made.path, backend=backend, settings={"sigma": wrong})
    with pytest.raises(UsageError, match="takes one number, no picture"):
        Restorer(made.path, settings={"sigma": np.zeros((8, 8), np.float32)})
    with pytest.raises(UsageError, match="it takes the picture alone"):
        Restorer(backend="ort", settings={"sigma": 1})
    for values, limits, says in (
        ({"sigma": 80.0}, {"sigma": (0.0, 75.0)}, "--set sigma=80: it is not within 0..75"),
        ({"sigma": 1.0}, {"sigma": (0.0, 1e7)}, "or that leaves -1e6..1e6"),
        (dict.fromkeys("abcdefghi", 1.0), {}, "9 numbers, 8 at most"),
    ):
        with pytest.raises(UsageError, match=says):
            Description(values=values, limits=limits)


def pooling(path: Path) -> Path:
    """A network whose sigma decides what is pooled over the picture, too."""
    hidden = constant("w", rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 3)
    back = constant("v", rng.standard_normal((3, 8, 3, 3)).astype(np.float32) / 32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4, name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "sigma"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Sub", ["c", "d"], ["e"]),
        helper.make_node("Conv", ["e", "v"], ["f"], pads=[1] * 4, name="last"),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    return write(path, nodes, [hidden, back], more=[helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [])])


def test_tiles_share_what_follows_from_a_number_in_every_kind_of_file(tmp_path: Path) -> None:
    source = pooling(tmp_path / "theirs.onnx")
    made = adopted(source, {"sigma": 0.5}, {"sigma": (0.0, 2.0)})
    assert (made.spec.numbers, made.spec.statistics > 0, made.spec.spec_version) == (("sigma",), True, 4)
    write_ort_mobile(made.path, tmp_path)
    for end in ("", ".tile", ".statistics"):
        converted = openvino.convert_model(tmp_path / f"ours{end}.onnx")
        openvino.save_model(converted, tmp_path / f"ours{end}.xml", compress_to_fp16=False)
    probe = Probe(read_onnx(source))
    image = np.ascontiguousarray(PICTURE.transpose(2, 0, 1)[None])
    want = {
        sigma: probe.run({"x": image, "sigma": np.array(sigma, np.float32)})["y"][0].transpose(1, 2, 0).clip(0, 1)
        for sigma in (0.5, 1.5)
    }
    assert np.abs(want[0.5] - want[1.5]).max() > 0.05
    for suffix, backend in ((".onnx", "ort"), (".onnx", "openvino"), (".ort", "ort"), (".xml", "openvino")):
        for settings, sigma in (({}, 0.5), ({"sigma": 1.5}, 1.5)):
            path = made.path.with_suffix(suffix)
            with Restorer(path, backend, threads=1, statistics="exact", settings=settings) as restorer:
                np.testing.assert_allclose(restorer.restore(PICTURE), want[sigma], atol=1e-5)
