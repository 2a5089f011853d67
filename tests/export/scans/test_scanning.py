"""Networks of selective scans, exported for any size: as a loop, as a described function, as an import of mamba_ssm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import scanning
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export import export_module, register_scan
from clusir.export.scans.mamba import NOTE, mamba_importable, selective_scan_fn
from clusir.export.scans.registry import as_described, check_scans, clear_scans, described_scans
from clusir.runtimes import open_runner


@pytest.fixture(autouse=True)
def no_descriptions() -> Iterator[None]:
    clear_scans()
    yield
    clear_scans()


def assert_right(path: Path, model: nn.Module, *shapes: tuple[int, int, int]) -> None:
    images = [torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(w)) for b, h, w in shapes]
    with torch.no_grad():
        wanted = [model(image).numpy() for image in images]
    for backend in ("ort", "openvino"):
        with open_runner(path, backend, "cpu", 1) as runner:
            for image, want in zip(images, wanted, strict=True):
                np.testing.assert_allclose(runner.run({"image": image.numpy()})["restored"], want, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("small_measures")
def test_four_directions_are_right_at_any_size_and_batch(tmp_path: Path) -> None:
    made = export_module(scanning.scanning_restorer(blocks=1), "1x3x32x32", tmp_path / "scans.onnx", backends=("ort",))
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (4, 0)
    assert not any("fixes" in note for note in made.notes)
    assert_right(made.path, scanning.scanning_restorer(blocks=1), (2, 32, 32), (1, 60, 92), (2, 100, 44), (1, 20, 136))


def in_chunks(u: Tensor, delta: Tensor, rates: Tensor, enter: Tensor, leave: Tensor, skip: Tensor) -> Tensor:
    """The same scan in a way that no tracer follows."""
    args = [
        t.detach().numpy().astype(np.float64) for t in (u, torch.nn.functional.softplus(delta), rates, enter, leave)
    ]
    (x, step, rate, into, out), state, made = args, 0.0, []
    for i in range(x.shape[2]):
        entry = (step[:, :, i] * x[:, :, i])[..., None] * into[:, None, :, i]
        state = np.exp(step[:, :, i, None] * rate) * state + entry
        made.append((state * out[:, None, :, i]).sum(-1))
    return torch.from_numpy(np.stack(made, 2)).float() + u * skip[:, None]


def describe(target: object, axis: int = 2, sign: float = 1.0) -> None:
    register_scan(
        target,
        decay=lambda u, delta, rates, *_: torch.exp(nn.functional.softplus(delta)[..., None] * rates[:, None]),
        entry=lambda u, delta, rates, enter, *_: (
            sign * (nn.functional.softplus(delta) * u)[..., None] * enter.transpose(1, 2)[:, None]
        ),
        axis=axis,
        read=lambda states, u, delta, rates, enter, leave, skip: (
            torch.einsum("bdln,bnl->bdl", states, leave) + u * skip[:, None]
        ),
    )


@pytest.mark.parametrize("target", [in_chunks, f"{__name__}.in_chunks"], ids=["function", "name"])
def test_a_described_scan_is_what_its_function_is(target: object) -> None:
    plain = in_chunks
    model, image = scanning.scanning_restorer(scan=plain, blocks=1), torch.rand(1, 3, 24, 36)
    describe(target)
    with torch.no_grad():
        check_scans(model, image)
        want = model(image)
        with described_scans(model, as_described):
            assert model.blocks[0].walk.scan is not plain
            torch.testing.assert_close(model(image), want, atol=1e-5, rtol=0)
    assert model.blocks[0].walk.scan is plain


def test_a_description_that_says_something_else_is_refused() -> None:
    model = scanning.scanning_restorer(scan=in_chunks, blocks=1)
    describe(in_chunks, sign=0.99)
    with pytest.raises(
        UnsupportedModelError, match=r"in_chunks in register_scan does not say what it does: .*check decay"
    ):
        check_scans(model, torch.rand(1, 3, 24, 36))
    describe("nowhere.at.all")
    with pytest.raises(UsageError, match=r"'nowhere\.at\.all' is nowhere"):
        check_scans(model, torch.rand(1, 3, 24, 36))
    with pytest.raises(UsageError, match="3 is neither a function"):
        describe(3)


class Averages(nn.Module):
    """A block whose class is described."""

    def forward(self, x: Tensor, keep: float) -> Tensor:
        state, rows = torch.ones_like(x[:, :, 0]), []
        for row in x.detach().numpy().swapaxes(0, 2):
            state = keep * state + torch.from_numpy(row.swapaxes(0, 1).copy())
            rows.append(state)
        return torch.stack(rows, 2)


def test_a_described_block_gets_itself_first() -> None:
    block, x = Averages(), torch.rand(2, 3, 7, 5)
    register_scan(
        Averages,
        decay=lambda block, x, keep: torch.full((), keep),
        entry=lambda block, x, keep: x,
        axis=2,
        start=lambda block, x, keep: torch.ones(()),
    )
    want = block(x, 0.5)
    with described_scans(block, as_described):
        torch.testing.assert_close(block(x, 0.5), want)
    assert Averages.forward is block.forward.__func__


class Faint(nn.Module):
    """A sum of what is hardly there."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().cumsum(2)) * 1e-6


@pytest.mark.parametrize("off", [1.0, 1.01])
def test_small_answers_are_compared_by_their_own_size(off: float) -> None:
    register_scan(
        Faint,
        decay=lambda block, x: torch.ones(()),
        entry=lambda block, x: x,
        axis=2,
        read=lambda states, block, x: states * (off * 1e-6),
    )
    told = nullcontext() if off == 1 else pytest.raises(UnsupportedModelError, match=r"differ by 0\.01")
    with told:
        check_scans(Faint(), torch.rand(1, 3, 24, 36))


NETWORK = """
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from scanning import ScanningRestorer

def scan(u, delta, rates, enter, leave, skip):
    return selective_scan_fn(u, delta, rates, enter, leave, skip, delta_softplus=True)

def factory():
    torch.manual_seed(0)
    return ScanningRestorer(scan=scan, blocks=1)
"""


@pytest.mark.usefixtures("small_measures")
def test_a_network_that_imports_mamba_ssm_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imports_mamba.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = export_module("imports_mamba:factory", "1x3x32x32", tmp_path / "scans.onnx")
    assert NOTE in made.notes
    assert "mamba_ssm" not in sys.modules
    assert_right(made.path, scanning.scanning_restorer(blocks=1), (2, 32, 32), (1, 60, 92), (1, 100, 44), (1, 20, 136))


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_the_stand_in_is_the_published_recurrence(groups: int) -> None:
    torch.manual_seed(0)
    b, d, n, length = 2, 4, 3, 17
    u, delta, z = torch.randn(3, b, d, length)
    rates, skip, bias = -torch.rand(d, n), torch.rand(d), torch.rand(d)
    shape = (b, groups, n, length) if groups else (d, n)
    enter, leave = torch.randn(shape), torch.randn(shape)
    with mamba_importable():
        from mamba_ssm.ops.selective_scan_interface import selective_scan_ref
    assert selective_scan_ref is selective_scan_fn
    got, last = selective_scan_ref(u, delta, rates, enter, leave, skip, z, bias, True, True)
    step, state, want = nn.functional.softplus(delta + bias[:, None]), torch.zeros(b, d, n), []
    for t in range(length):
        into, out = (m[..., t].repeat_interleave(d // groups, 1) if groups else m[None] for m in (enter, leave))
        state = torch.exp(step[:, :, t, None] * rates) * state + (step * u)[:, :, t, None] * into
        want.append((state * out).sum(-1) + skip * u[:, :, t])
    torch.testing.assert_close(got, torch.stack(want, 2) * nn.functional.silu(z))
    torch.testing.assert_close(last, state)
