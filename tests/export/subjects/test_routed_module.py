"""Routed blocks of somebody else's model: described and exported, or refused with the line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import patterns
import pytest
import torch
from torch import Tensor, nn

from clusir.errors import ExportError, UnsupportedModelError, UsageError, ValidationError
from clusir.export.experts.join import JoinGates
from clusir.export.experts.registry import (
    DenseBlock,
    DensifyRegistered,
    MoEDescription,
    clear_registry,
    dense_blocks,
    register_moe,
    top_k_gate,
)
from clusir.export.module import export_module
from clusir.export.passes.simplify import AttachMetadata
from clusir.export.subjects.checks import reference
from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from clusir.export.validate.cases import ModuleCheck, probes
from clusir.export.validate.foreign import validate
from clusir.runtimes import open_runner
from clusir.spec import ModelSpec, SizeRequirements

pytestmark = pytest.mark.usefixtures("small_measures")
LEVELS = (0.2, 1.0, 1.9)  # dark, middle, bright: one for each expert of the patterns


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    torch.manual_seed(5)
    clear_registry()
    yield
    clear_registry()


def one_expert(block: nn.Module, x: Tensor) -> Tensor:
    return top_k_gate(patterns.brightness_scores(x), 1)


def add_input(block: nn.Module, mixed: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    return x + mixed


DESCRIPTIONS: dict[type[nn.Module], dict[str, Any]] = {
    patterns.IndexedExperts: {"experts": "experts", "gate": one_expert, "combine": add_input},
    patterns.CountingLoop: {"experts": "experts", "gate": one_expert, "combine": add_input},
    patterns.SparseDispatch: {
        "experts": lambda block: list(block.experts),
        "gate": lambda block, x: block.gates(x),
        "combine": lambda block, mixed, gate, x: (mixed, gate.sum(0).var()),
    },
}


def export(model: nn.Module, folder: Path, **options: Any) -> Any:
    return export_module(model.eval(), "1x3x32x32", folder / "model.onnx", **options)


def mixed_batch(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    levels = torch.tensor([*LEVELS, 0.2]).view(4, 1, 1, 1)
    return (torch.rand(4, 3, height, width, generator=generator) * levels).clamp(0, 1.9)


@pytest.mark.parametrize(
    ("block", "router"),
    [
        (patterns.IndexedExperts, "dense"),
        (patterns.CountingLoop, "conditional"),
        (patterns.SparseDispatch, "dense"),
        (patterns.SparseDispatch, "conditional"),
    ],
    ids=lambda p: getattr(p, "__name__", p),
)
def test_described_block_exports_with_every_route(block: Callable[[], nn.Module], router: str, tmp_path: Path) -> None:
    register_moe(block, **DESCRIPTIONS[block])  # type: ignore[arg-type, index]
    model = patterns.Restorer(block()).eval()
    result = export(model, tmp_path, router=router)
    assert len(result.routes) >= 2
    # This one takes a batch for one picture; its dense form does not, and the difference is reported.
    assert any("wrong for a batch" in note for note in result.notes) == (block is patterns.IndexedExperts)
    assert sum("experts forced" in a.what for a in result.agreements) == 6  # three experts on two runtimes
    ifs = sum(n.op_type == "If" for n in onnx.load(result.path).graph.node)
    assert ifs == (3 if router == "conditional" else 0)
    for backend in ("ort", "openvino"):
        with open_runner(result.path, backend, "cpu", 1) as runner:
            # Each of the three routes alone at one size, all of them in a batch at the other.
            for height, width, cuts in ((37, 52, [slice(e, e + 1) for e in range(3)]), (50, 41, [slice(0, 4)])):
                batch = mixed_batch(height, width)
                want = reference(model, batch).numpy()
                for rows in cuts:
                    got = runner.run({"image": batch[rows].numpy()})
                    np.testing.assert_allclose(got["restored"], want[rows], atol=1e-5)
                    assert got["gate"].shape == (rows.stop - rows.start, 3)
            assert len(set(got["gate"].argmax(1))) == 3, "the test pictures do not take three routes"


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (patterns.IndexedExperts, r"self\.experts\[chosen\]\(x\)  # the line"),
        (patterns.CountingLoop, "if tokens > 0:"),
        (patterns.SparseDispatch, r"(\.nonzero\(|torch\.split|counts|zip\()"),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_undescribed_routing_is_refused_with_its_line(
    block: Callable[[], nn.Module], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"patterns\.py:\d+ `.*{line}") as caught:
        export(patterns.Restorer(block()), tmp_path)
    assert "register_moe" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_remembered_route_is_refused_with_the_line_that_chooses(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"patterns\.py:\d+ `self\.route = int"):
        export(patterns.Restorer(patterns.RememberedRoute()), tmp_path)


def test_wrong_description_is_refused(tmp_path: Path) -> None:
    register_moe(patterns.CountingLoop, experts="experts", gate=one_expert)  # combine forgets the residual
    with pytest.raises(UnsupportedModelError, match="does not say what the model does"):
        export(patterns.Restorer(patterns.CountingLoop()), tmp_path)


def test_gate_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    register_moe(patterns.CountingLoop, experts="experts", gate=lambda block, x: x.mean((1, 2, 3)), combine=add_input)
    with pytest.raises(ExportError, match=r"its gate is \(1,\); it must be Bx3"):
        export(patterns.Restorer(patterns.CountingLoop()), tmp_path)


def test_dense_block_keeps_parameter_names_and_leaves_the_user_model_alone() -> None:
    register_moe("patterns.CountingLoop", **DESCRIPTIONS[patterns.CountingLoop])
    model = patterns.Restorer(patterns.CountingLoop()).eval()
    result = DensifyRegistered().apply(model)
    assert result.modified
    assert [n for n, _ in result.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert not dense_blocks(model)
    x = mixed_batch(20, 24)
    torch.testing.assert_close(result.model(x), reference(model, x))
    assert not DensifyRegistered().apply(nn.Conv2d(3, 3, 1)).modified


def test_a_forced_gate_has_the_form_of_the_blocks_own() -> None:
    """One weight for each pixel where the block has them: its ``combine`` may use them as such."""
    block = nn.Module()
    block.experts = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
    each = MoEDescription("experts", lambda _, x: torch.rand(len(x), 2, *x.shape[2:]))
    x, forced = torch.rand(2, 3, 4, 5), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    dense = DenseBlock("block", block, each, forced=forced)
    got = dense(x)
    assert dense.gates[0].shape == (2, 2, 4, 5)
    torch.testing.assert_close(dense.gates[0][:, :, 0, 0], forced)
    torch.testing.assert_close(got[:1], block.experts[1](x[:1]))
    torch.testing.assert_close(got[1:], block.experts[0](x[1:]))


def test_a_forced_expert_that_differs_is_caught(tmp_path: Path) -> None:
    """An expert that no probe reaches is compared all the same: break its weights in the file and nothing else."""

    def always_first(block: nn.Module, x: Tensor) -> Tensor:
        return 0 * one_expert(block, x) + torch.tensor([1.0, 0, 0])

    register_moe(patterns.CountingLoop, experts="experts", gate=always_first)
    dense = DensifyRegistered().apply(patterns.Restorer(patterns.CountingLoop()).eval()).model
    blocks = dense_blocks(dense)
    traced = trace_module(dense, probes(1, 3, 16, 20))
    model, gates = write_program(traced, "auto")
    model = JoinGates(gates).apply(AttachMetadata(ModelSpec(size=SizeRequirements(1, 1))).apply(model).model).model
    given = ModuleCheck(dense, dense, [(16, 20)], gates)
    onnx.save(model, tmp_path / "model.onnx")
    assert validate(tmp_path / "model.onnx", given)
    weight = next(t for t in model.graph.initializer if "experts.2.weight" in t.name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValidationError, match="experts forced to"):
        validate(tmp_path / "model.onnx", given)
    assert len(blocks) == 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_gate_keeps_the_largest_and_breaks_ties_low(k: int) -> None:
    scores = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [1 / 3, 1 / 3, 1 / 3]])
    gate = top_k_gate(scores, k)
    for row, kept in zip(scores.tolist(), gate, strict=True):
        best = sorted(range(3), key=lambda e: (-row[e], e))[:k]
        assert sorted(kept.nonzero().flatten().tolist()) == sorted(best)
    assert torch.allclose(top_k_gate(scores, k, renormalise=True).sum(1), torch.ones(3))


def test_registry_refuses_what_is_no_class() -> None:
    with pytest.raises(UsageError, match="neither a class nor"):
        register_moe("JustAName", experts="experts", gate=one_expert)
    with pytest.raises(UsageError, match="top-k of 4"):
        top_k_gate(torch.rand(2, 3), 4)
