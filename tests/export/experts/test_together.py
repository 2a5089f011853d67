"""Described experts computed as one, or gathered, and the choice between the forms by measuring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export import fastest
from clusir.export.experts.registry import (
    DensifyRegistered,
    as_form,
    clear_registry,
    dense_blocks,
    register_moe,
    top_k_gate,
)
from clusir.export.experts.together import at_most, unlike
from clusir.export.fastest import rank_forms, routers_for
from clusir.export.module import export_module
from clusir.export.subjects.checks import reference
from clusir.runtimes import open_runner


class Small(nn.Module):
    """An expert of a few hundred weights, with a buffer, and with a norm where it is asked for."""

    def __init__(self, dim: int, normed: bool = False) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(dim, dim // 2, 1), nn.Conv2d(dim // 2, dim, 3, padding=1)
        self.norm = nn.GroupNorm(2, dim // 2) if normed else nn.Identity()
        self.register_buffer("scale", torch.rand(1, dim // 2, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.norm(self.enter(x)) * self.scale))


class Routed(nn.Module):
    """Of many small experts the best two, sample by sample."""

    def __init__(self, dim: int, experts: int, top: int, normed: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Small(dim, normed) for _ in range(experts))
        self.router, self.top = nn.Linear(dim, experts), top

    def scores(self, x: Tensor) -> Tensor:
        return (20 * self.router(x.mean((2, 3)))).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.scores(x).topk(self.top, 1)
        rows = []
        for sample in range(x.shape[0]):
            picked = zip(best[sample], which[sample], strict=True)
            rows.append(sum(weight * self.experts[int(at)](x[sample : sample + 1]) for weight, at in picked))
        return x + torch.cat(rows)


class Network(nn.Module):
    def __init__(self, experts: int = 5, top: int = 2, dim: int = 8, normed: bool = False) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 3, 3, padding=1)
        self.body = Routed(dim, experts, top, normed)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.body(self.head(x)))


@pytest.fixture(autouse=True)
def _described() -> Iterator[None]:
    torch.manual_seed(3)
    clear_registry()
    register_moe(
        Routed,
        experts="experts",
        gate=lambda block, x: top_k_gate(block.scores(x), block.top),
        combine=lambda block, mixed, gate, x: x + mixed,
    )
    yield
    clear_registry()


def densified(model: nn.Module) -> nn.Module:
    return DensifyRegistered().apply(model.eval()).model


def pictures(count: int, height: int, width: int) -> Tensor:
    tint = torch.linspace(0, 1, count).view(count, 1, 1, 1)
    return (
        torch.rand(count, 3, height, width) * tint + (1 - tint) * torch.eye(3)[torch.arange(count) % 3][..., None, None]
    )


@pytest.mark.parametrize(("router", "batch"), [("merged", 4), ("gathered", 1)])
def test_every_form_sums_up_the_same(router: str, batch: int) -> None:
    model = Network(normed=True)
    dense = densified(model)
    for start in range(0, 4, batch):
        image = pictures(4, 20, 28)[start : start + batch]
        with torch.no_grad(), as_form(dense, router):
            got = dense(image)
        np.testing.assert_allclose(got.numpy(), reference(model, image).numpy(), atol=1e-5)
        assert all(block.form == "dense" for block in dense_blocks(dense))


def test_negative_weights_are_gathered_too() -> None:
    """The chosen are those that are not zero, not the largest."""
    clear_registry()
    register_moe(
        Routed,
        experts="experts",
        gate=lambda block, x: top_k_gate(block.scores(x) - 5, block.top),
        combine=lambda block, mixed, gate, x: x + mixed,
    )
    dense, image = densified(Network()), pictures(3, 16, 16)[1:2]
    with torch.no_grad():
        want = dense(image)
        with as_form(dense, "gathered"):
            got = dense(image)
    np.testing.assert_allclose(got.numpy(), want.numpy(), atol=1e-5)


def test_a_gate_says_how_many_it_chooses_only_as_it_is() -> None:
    gate = top_k_gate(torch.rand(2, 6), 3)
    assert at_most(gate) == 3
    assert at_most(gate * 1) == 0


@pytest.mark.parametrize("spoil", ["shape", "setting", "class", "hook"])
def test_experts_that_differ_are_not_run_as_one(spoil: str) -> None:
    experts: list[Any] = [Small(8) for _ in range(3)]
    assert unlike(experts) == ""
    if spoil == "shape":
        experts[2].enter = nn.Conv2d(8, 6, 1)
    elif spoil == "setting":
        experts[2].leave = nn.Conv2d(4, 8, 3, padding=2, dilation=2)
    elif spoil == "class":
        experts[2] = nn.Conv2d(8, 8, 1)
    else:
        experts[2].register_forward_hook(lambda *_: None)
    assert unlike(experts).startswith("expert 2")


def test_gathering_is_refused_where_it_could_be_wrong() -> None:
    dense = densified(Network())
    with as_form(dense, "gathered"), pytest.raises(UnsupportedModelError, match="--batch 1"):
        dense(pictures(2, 16, 16))
    clear_registry()
    register_moe(Routed, experts="experts", gate=lambda block, x: top_k_gate(block.scores(x), 2) * 1.0)
    dense = densified(Network())
    with as_form(dense, "gathered"), pytest.raises(UnsupportedModelError, match="top_k_gate as it is"):
        dense(pictures(1, 16, 16))


@pytest.mark.usefixtures("small_measures")
@pytest.mark.parametrize(("router", "batch", "size"), [("merged", 0, 40), ("gathered", 1, 0)])
def test_exported_forms_are_right_for_every_expert(router: str, batch: int, size: int, tmp_path: Path) -> None:
    model = Network().eval()
    made = export_module(model, "1x3x32x32", tmp_path / "model.onnx", router=router, batch=batch, size=size)
    assert made.spec.router_form == router
    assert sum("experts forced" in a.what for a in made.agreements) == 10  # five experts on two runtimes
    kinds = {n.op_type for n in onnx.load(made.path).graph.node}
    assert ("TopK" in kinds) == (router == "gathered")
    assert made.spec.size.static_px == size
    image = pictures(3, 40, size or 56)
    for backend in ("ort", "openvino"):
        with open_runner(made.path, backend, "cpu", 1) as runner:
            got = np.concatenate([runner.run({"image": part.numpy()})["restored"] for part in image.split(1)])
        np.testing.assert_allclose(got, reference(model, image).numpy(), atol=1e-5)


# -- the choice --------------------------------------------------------------------------------------------------------


class Clock:
    """Runs that take as long as the test says: time goes on only inside them."""

    def __init__(self, seconds: dict[tuple[str, str], float], answers: dict[str, float]) -> None:
        self.seconds, self.answers = seconds, answers

    def open(self, path: Path, backend: str, device: str, threads: int) -> Clock.Runner:
        return self.Runner(self, path.stem, backend)

    class Runner:
        def __init__(self, clock: Clock, router: str, backend: str) -> None:
            self.clock, self.router, self.backend = clock, router, backend

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"restored": feeds["image"] * self.clock.answers.get(self.router, 1.0)}

        def close(self) -> None:
            pass

    def measure(self, functions: dict[str, Any], runs: int, **_: Any) -> dict[str, list[float]]:
        backend = next(iter(functions.values())).__defaults__[0].backend
        return {name: [self.seconds[backend, name.split()[0]]] * runs for name in functions}


def ranked(monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[str, str], float], **answers: float) -> fastest.Forms:
    clock = Clock(seconds, answers)
    monkeypatch.setattr(fastest, "open_runner", clock.open)
    monkeypatch.setattr(fastest, "measure_alternating", clock.measure)
    routers = tuple(dict.fromkeys(router for _, router in seconds))
    backends = tuple(dict.fromkeys(backend for backend, _ in seconds))
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    return rank_forms(lambda _: empty, routers, [{"image": np.ones((1, 3, 8, 8), np.float32)}], backends)


def test_the_fastest_over_both_runtimes_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        ("ort", "dense"): 1.0, ("ort", "merged"): 0.5, ("ort", "conditional"): 0.2,
        ("openvino", "dense"): 1.0, ("openvino", "merged"): 0.5, ("openvino", "conditional"): 3.0,
    }  # fmt: skip
    forms = ranked(monkeypatch, seconds)
    assert forms.order == ("merged", "conditional", "dense")
    assert "took merged" in forms.said
    assert "conditional 3.00x" in forms.said


def test_what_is_hardly_faster_does_not_replace_the_portable_form(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ranked(monkeypatch, {("ort", "dense"): 1.0, ("ort", "conditional"): 0.99})
    assert forms.order[0] == "dense"


def test_where_the_clock_has_not_moved_the_portable_form_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranked(monkeypatch, {("ort", "dense"): 0.0, ("ort", "conditional"): 0.0}).order[0] == "dense"


def test_a_form_that_answers_otherwise_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ranked(monkeypatch, {("ort", "dense"): 1.0, ("ort", "conditional"): 0.1}, conditional=1.01)
    assert forms.order == ("dense",)
    assert "conditional left out (it answers otherwise than dense on ort)" in forms.said


def test_forms_that_a_file_can_have() -> None:
    assert routers_for(0, 0, ()) == ("dense", "conditional")
    assert routers_for(1, 64, ()) == ("dense", "merged", "conditional", "gathered")
    assert routers_for(1, 64, ("int8",)) == ("dense", "merged")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"router": "merged"}, "--router merged needs --size"),
        ({"router": "gathered"}, "--router gathered needs --batch 1"),
        ({"router": "sparse"}, "not one of dense, merged, conditional, gathered, auto"),
    ],
)
def test_a_form_that_cannot_be_is_refused_at_once(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export_module(Network().eval(), "1x3x32x32", tmp_path / "model.onnx", **asked)


@pytest.mark.usefixtures("small_measures")
def test_auto_exports_what_it_measured_as_the_fastest(tmp_path: Path) -> None:
    model = Network().eval()
    made = export_module(model, "1x3x32x32", tmp_path / "model.onnx", router="auto")
    said = next(note for note in made.notes if note.startswith("--router auto took "))
    assert f"took {made.spec.router_form} " in said
    for router in ("dense", "conditional"):
        assert f"{router} " in said.partition("(")[2]
    image = pictures(3, 40, 56)
    with open_runner(made.path, "ort", "cpu", 1) as runner:
        got = runner.run({"image": image.numpy()})["restored"]
    np.testing.assert_allclose(got, reference(model, image).numpy(), atol=1e-5)


@pytest.mark.usefixtures("small_measures")
def test_auto_takes_no_form_that_fixes_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch runs stacked weights for one size only."""
    first = fastest.Forms(("merged", "dense"), "--router auto took merged")
    monkeypatch.setattr("clusir.export.module.rank_forms", lambda *_: first)
    made = export_module(Network(2, 1, normed=True).eval(), "1x3x32x32", tmp_path / "model.onnx", router="auto")
    assert (made.spec.router_form, made.spec.size.static_px) == ("dense", 0)
    assert any("merged was given up (it fixes the size" in note for note in made.notes)


@pytest.mark.usefixtures("small_measures")
def test_auto_without_routed_blocks_is_dense_and_says_so(tmp_path: Path) -> None:
    made = export_module(nn.Conv2d(3, 3, 3, padding=1).eval(), "1x3x32x32", tmp_path / "model.onnx", router="auto")
    assert made.spec.router_form == "dense"
    assert any("no block is described as routed" in note for note in made.notes)
