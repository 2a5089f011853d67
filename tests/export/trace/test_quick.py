"""What makes tracing quick ends with it, and takes nothing away that is asked later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_impls import op_implementations_dict
from torch.fx.experimental.proxy_tensor import make_fx

from clusir.export.passes.simplify import operators
from clusir.export.trace.program import trace_module
from clusir.export.trace.quick import quick_tracing
from clusir.export.trace.rules import rewriting_rules
from clusir.export.trace.writer import write_program


class Padded(nn.Module):
    """Pads to patches of four, transforms each, and cuts: sizes with guards, and strides that a transform sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        b, c, h, w = image.shape
        x = nn.functional.pad(self.mix(image), (0, -w % 4, 0, -h % 4))
        rows, columns = x.shape[2] // 4, x.shape[3] // 4
        x = x.reshape(b, c, rows, 4, columns, 4).permute(0, 1, 2, 4, 3, 5)
        x = torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(4, 4))
        return x.permute(0, 1, 2, 4, 3, 5).reshape(b, c, rows * 4, columns * 4)[:, :, :h, :w]


def settings() -> tuple[object, bool, object]:
    cached = torch._dynamo.config.fake_tensor_cache_enabled
    return torch._meta_registrations._exec_fft, cached, torch.fx.proxy.CapturedTraceback


def test_torch_is_as_it_was_after_an_error() -> None:
    before, inside = settings(), []

    def fail() -> None:
        with quick_tracing():
            inside.append(settings())
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert settings() == before
    assert inside[0][0] is not before[0]
    assert inside[0][1] is False
    assert inside[0][2] is not before[2]


def test_an_operator_that_comes_later_is_looked_up_too() -> None:
    lookup = torch._export.utils._collect_all_valid_cia_ops
    with quick_tracing():
        before = {str(operator) for operator in lookup()}
        library = torch.library.Library("clusir_later", "DEF")
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeImplicitAutograd")
        after = {str(operator) for operator in lookup()}
    # torch's own namespaces may join at any lookup, after the one that first names them.
    assert "clusir_later.twice.default" in after - before
    assert len(before) > 100


def test_guards_outlive_the_writing_of_the_graph() -> None:
    traced = trace_module(Padded().eval(), torch.rand(2, 3, 73, 139))
    guards = list(traced.original._guards_code)
    assert guards, "this network is to have guards"
    model, _ = write_program(traced)
    assert traced.original._guards_code == guards
    assert {"batch", "height", "width"} <= {d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim}
    assert traced.original is not traced.program


def test_guards_of_a_program_without_transforms_outlive_it_too() -> None:
    class Halved(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(image, 2), 2) + image

    traced = trace_module(Halved().eval(), torch.rand(2, 3, 74, 138))
    assert traced.original is traced.program
    guards = list(traced.original._guards_code)
    assert guards
    write_program(traced)
    assert traced.original._guards_code == guards


class Pyramid(nn.Module):
    """Half of a map, and half of that, by a scale factor; and by one that a float does not hold."""

    def forward(self, x: Tensor) -> Tensor:
        half = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=True)
        fourth = nn.functional.interpolate(half, scale_factor=0.5, mode="bilinear", align_corners=False)
        third = nn.functional.interpolate(x, scale_factor=1 / 3, mode="bilinear", align_corners=False)
        back = [nn.functional.interpolate(y, size=x.shape[2:], mode="bilinear") for y in (half, fourth, third)]
        return torch.stack(back).mean(0)


def test_sizes_of_maps_at_half_the_size_are_whole_numbers() -> None:
    traced = trace_module(Pyramid().eval(), torch.rand(2, 3, 73, 139))
    resized = [n for n in traced.program.graph.nodes if n.target == torch.ops.aten.upsample_bilinear2d.vec]
    sizes = [str(size) for node in resized for size in node.meta["val"].shape[2:]]
    assert len(sizes) == 12
    assert sum("Float" in size for size in sizes) == 2, sizes  # a third
    for height, width in ((50, 87), (97, 64)):
        image = torch.rand(1, 3, height, width)
        torch.testing.assert_close(traced.program.module()(image)[0], Pyramid()(image))


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")


class Resampled(nn.Module):
    """Maps of other sizes by weights: linear, cubic, and by a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = Halved()

    def forward(self, x: Tensor) -> Tensor:
        small = self.halve(x)
        back = nn.functional.interpolate(small, size=x.shape[2:], mode="bicubic", align_corners=True)
        grid = x[:, :2].permute(0, 2, 3, 1) * 2 - 1
        return back + nn.functional.grid_sample(x, grid, mode="bicubic", align_corners=False)


def called(program: torch.export.ExportedProgram) -> list[tuple[str, int]]:
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return [(str(node.target), node.meta["val"].dim() if isinstance(node.meta["val"], Tensor) else 0) for node in nodes]


def test_of_a_resampled_map_a_trace_asks_the_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    example = (torch.rand(2, 3, 37, 52),)
    whole = torch.export.export(Resampled(), example, dynamic_shapes=(free,))

    def written_out(*_: object, **__: object) -> None:
        raise AssertionError("the weights are written out")

    for name in ("_compute_scale", "_upsample_cubic_interp1d"):
        monkeypatch.setattr(torch._decomp.decompositions, name, written_out)
    with quick_tracing():
        quick = torch.export.export(Resampled(), example, dynamic_shapes=(free,))
    assert called(quick) == called(whole)
    lines, wanted = ([node.stack_trace for node in program.graph.nodes] for program in (quick, whole))
    assert lines == wanted
    assert any("small = self.halve(x)" in line and "scale_factor=0.5" in line for line in lines if line)
    image = torch.rand(1, 3, 50, 41)
    torch.testing.assert_close(quick.module()(image), Resampled()(image))


@pytest.mark.parametrize(
    "resample",
    [
        lambda x: torch.ops.aten.upsample_bilinear2d.vec(x, [9, 17], False, None),
        lambda x: torch.ops.aten.upsample_bicubic2d.vec(x, [9, 17], False, None),
        lambda x: torch.ops.aten.grid_sampler_2d(x, x[:, :2].permute(0, 2, 3, 1) * 2 - 1, 0, 0, False),
    ],
    ids=["linear", "cubic", "grid"],
)
def test_what_is_recorded_of_a_resampled_map_is_whole(resample: Callable[[Tensor], Tensor]) -> None:
    table = dict(torch._decomp.decomposition_table)
    with quick_tracing():
        made = make_fx(resample, decomposition_table=table, tracing_mode="symbolic")(torch.rand(2, 3, 6, 7))
    assert len(made.graph.nodes) > 20
    x = torch.rand(2, 3, 6, 7)
    torch.testing.assert_close(made(x), resample(x))


def test_rules_that_are_tried_on_their_own_operator_only_rewrite_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(4, 4, 3)

        def forward(self, image: Tensor) -> Tensor:
            return self.mix(nn.functional.pad(image, (1, 1, 1, 1))) + image[..., :1]

    traced = trace_module(Padding().eval(), torch.rand(2, 4, 20, 24))
    quick, _ = write_program(traced)
    monkeypatch.setattr("clusir.export.trace.writer.rewriting_rules", lambda: [r._rule for r in rewriting_rules()])
    slow, _ = write_program(traced)
    assert quick == slow
    assert operators(quick.graph)["Pad"] == 0, "the convolution takes it"


class Windows(nn.Module):
    """Writes into a map through another view of it, for which the program is run again, and cuts windows."""

    def forward(self, image: Tensor) -> Tensor:
        b, c, h, w = image.shape
        x = nn.functional.pad(image, (0, -w % 4, 0, -h % 4))
        x.permute(0, 2, 3, 1)[:, 1:] += 1
        high, wide = x.shape[2:]
        x = x.view(b, c, high // 4, 4, -1, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = (x @ x.transpose(-2, -1)).softmax(-1) @ x
        x = x.view(b, high // 4, wide // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(b, c, high, wide)[..., :h, :w]


def test_a_program_that_is_run_again_proves_no_view_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    view, proved, files = torch.ops.aten.view.default, list[str](), []
    rule, prove = op_implementations_dict[view], torch._refs._reshape_view_helper

    def counted(x: Tensor, *shape: object, **options: object) -> Tensor:
        symbolic = any(isinstance(size, torch.SymInt) for size in x.shape)
        proved.extend(["view"] * symbolic)
        return prove(x, *shape, **options)

    monkeypatch.setattr(torch._refs, "_reshape_view_helper", counted)
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr("clusir.export.trace.program.quick_views", contextlib.nullcontext)
            monkeypatch.setattr("clusir.export.trace.writer.quick_views", contextlib.nullcontext)
        proved.clear()
        traced = trace_module(Windows().eval(), torch.rand(2, 3, 21, 26))
        model, _ = write_program(traced)
        files.append((operators(model.graph), traced.original._guards_code, len(proved)))
    assert files[0][:2] == files[1][:2]
    assert 0 < files[0][2] < files[1][2] / 2
    assert op_implementations_dict[view] is rule
    image = torch.rand(1, 3, 40, 50)
    torch.testing.assert_close(traced.program.module()(image)[0], Windows()(image))
