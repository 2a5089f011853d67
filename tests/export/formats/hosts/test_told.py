"""Networks that were told what to mend before they are shown a tile: router and tile graph as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from clusir.degrade import degrade
from clusir.errors import UnsupportedModelError
from clusir.export.formats.hosts.darktable import Darktable
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.routing.told import gate_nodes, told
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer
from clusir.runtimes.restore.routing import split_levels, top_k_gate
from clusir.runtimes.runners.files import find_model
from clusir.spec import ModelSpec

GOLDEN = Path(__file__).parents[3] / "golden"
LEVEL = 1 / 255
rng = np.random.default_rng(6)


@pytest.mark.parametrize("families", [("noise",), ("haze",), ("noise", "jpeg")])
def test_it_answers_as_the_restorer_that_is_told_the_same(families: tuple[str, ...]) -> None:
    path = GOLDEN / "standin_told.onnx"
    made = told(open_source(path), families)
    assert (made.spec.graph, made.spec.routed, made.spec.families) == ("whole", False, ())
    assert [value.name for value in made.model.graph.input] == ["image"]
    assert [value.name for value in made.model.graph.output] == ["restored"]
    image = rng.random((1, 3, 48, 48), dtype=np.float32)
    with Restorer(path, backend="ort", threads=1, fix=",".join(families)) as restorer:
        wanted = np.asarray(restorer.restore(np.ascontiguousarray(image[0].transpose(1, 2, 0))))
    got = Probe(made.model, threads=1).run({"image": image})["restored"]
    assert np.abs(got[0].transpose(1, 2, 0).clip(0, 1) - wanted).max() <= 1e-6
    assert np.abs(got - image).max() > 0.1


def test_what_was_said_beforehand_is_what_decides() -> None:
    source = open_source(GOLDEN / "standin_told.onnx")
    image = rng.random((1, 3, 48, 48), dtype=np.float32)
    answers = [Probe(told(source, (name,)).model).run({"image": image})["restored"] for name in ("noise", "haze")]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gates_are_those_of_the_runtimes_ties_and_zeros_included(k: int) -> None:
    spec = ModelSpec(name="gates", clusters=(2, 2), experts=(4, 3), top_k=k)
    graph = onnx.helper.make_graph([], "g", [onnx.helper.make_tensor_value_info("p", 1, [1, 7])], [])
    edit = GraphEdit(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9))
    name = gate_nodes(edit, "p", spec)
    edit.model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, [1, 7]))
    probe = Probe(edit.model)
    for row in ([0.1, 0.4, 0.2, 0.3, 0.5, 0.3, 0.2], [0.25] * 4 + [0.5, 0.5, 0], [0, 0, 0, 0, 0, 1, 0], [0] * 7):
        given = np.asarray(row, np.float32)
        wanted = np.concatenate([top_k_gate(part, k) for part in split_levels(given, spec.experts)])
        assert np.abs(probe.run({"p": given[None]})[name][0] - wanted).max() <= 1e-7


def test_a_network_that_cannot_be_told_so_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be told to mend blur; it knows noise, jpeg, haze"):
        told(open_source(GOLDEN / "standin_told.onnx"), ("noise", "blur"))
    with pytest.raises(UnsupportedModelError, match="it knows none"):
        told(open_source(GOLDEN / "standin_k2.onnx"))
    with pytest.raises(UnsupportedModelError, match="from a bundle"):
        told(replace(open_source(GOLDEN / "standin_told.onnx"), router=None))


def test_darktable_gets_a_network_that_decides_where_it_can_be_told_and_constants_where_not() -> None:
    for name, decides in (("standin_told", True), ("standin_k2", False)):
        source = open_source(GOLDEN / f"{name}.onnx")
        kinds = {node.op_type for node in Darktable().prepare(source).model.graph.node}
        assert ("Greater" in kinds) == decides, name  # ranks of experts


def test_the_shipped_network_mends_noise_and_leaves_haze_and_dusk_alone() -> None:
    path = find_model(None).whole
    source = open_source(path)
    host = Darktable()
    given = host.prepare(source)
    assert given.model.ByteSize() < 1.1 * source.model.ByteSize()  # the encoder's weights are there once
    probe = Probe(host_form(given, host.form(given)), threads=1)
    clean = natural_picture(256, 256, 3, 20)
    noisy = (np.rint((clean + rng.normal(0, 25 / 255, clean.shape)).clip(0, 1) * 255) / 255).astype(np.float32)
    answer = probe.run({"input": noisy})["output"]
    with Restorer(path, backend="ort", threads=1, fix="noise") as restorer:
        wanted = np.asarray(restorer.restore(np.ascontiguousarray(noisy[0].transpose(1, 2, 0))))
    assert abs(psnr(answer.clip(0, 1), clean) - psnr(wanted.transpose(2, 0, 1)[None], clean)) <= 0.1
    assert psnr(answer.clip(0, 1), clean) > psnr(noisy, clean) + 5
    photo = np.ascontiguousarray(clean[0].transpose(1, 2, 0))
    for kind in ("haze", "low_light"):
        scene = np.ascontiguousarray(degrade(photo, kind, 0.7, rng).transpose(2, 0, 1)[None], np.float32)
        assert abs(float((probe.run({"input": scene})["output"] - scene).mean())) < 2 * LEVEL, kind
