"""The deblurring blend: the bank's filters, the convolution through the Fourier domain, and how the blend is taught."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clusir.degrade.optics import filter_image, gaussian_kernel, line_kernel
from clusir.network.checkpoint import random_model
from clusir.network.deblur import FILTERS, REACH_PX, SteeredDeblur, wiener_bank
from clusir.network.model import CONFIGS
from clusir.network.pooled import PooledStatistics
from clusir.training.data import BatchPlan, PhotoSet, draw_batch
from clusir.training.deblur import blend_forms, calibrate_deblur


def refuse() -> torch.Tensor:
    raise AssertionError("statistics were asked for although the blend is given")


def added(image: torch.Tensor, blend: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return SteeredDeblur()(image, refuse, PooledStatistics(blend))


def photo(size: int = 128) -> torch.Tensor:
    """Edges and texture of several scales, 1x3xHxW, grey."""
    noise = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    scales = [F.interpolate(F.avg_pool2d(noise, k), size, mode="nearest") if k > 1 else noise for k in (4, 8, 16, 32)]
    return torch.stack(scales).sum(0).div(4).expand(-1, 3, -1, -1)


def test_filters_add_nothing_to_a_uniform_picture_and_are_symmetric() -> None:
    bank = wiener_bank()
    assert bank.shape == (FILTERS, 2 * REACH_PX + 1, 2 * REACH_PX + 1)
    assert bank.sum((1, 2)).abs().max() < 1e-5
    torch.testing.assert_close(bank.flip(1, 2), bank)
    assert added(torch.full((1, 3, 48, 32), 0.7), torch.ones(1, FILTERS)).abs().max() < 1e-4


def test_the_filter_of_a_blur_undoes_that_blur_and_no_other_direction() -> None:
    sharp = photo()
    for index, kernel in ((12, line_kernel(9.0, 0.0)), (18, line_kernel(9.0, 90.0)), (37, gaussian_kernel(1.2))):
        pixels = sharp[0].permute(1, 2, 0).numpy()
        blurred = torch.from_numpy(filter_image(pixels, kernel)).permute(2, 0, 1)[None]

        def error(filter_index: int, blurred: torch.Tensor = blurred) -> float:
            blend = F.one_hot(torch.tensor([filter_index]), FILTERS).float()
            return float((blurred + added(blurred, blend) - sharp).square().mean().sqrt())

        before = float((blurred - sharp).square().mean().sqrt())
        assert error(index) < 0.8 * before
        if index < 36:
            across = 12 + (index - 12 + 6) % 12
            assert error(across) > before


def test_the_blend_is_one_convolution_with_mirrored_borders_at_any_size() -> None:
    generator = torch.Generator().manual_seed(1)
    bank = wiener_bank()
    for height, width in ((16, 16), (48, 33), (31, 80)):
        image = torch.rand(2, 3, height, width, generator=generator)
        blend = torch.randn(2, FILTERS, generator=generator)
        kernels = torch.einsum("bk,kyx->byx", blend, bank)[:, None]
        grey = F.pad(image.mean(1, keepdim=True), (REACH_PX,) * 4, mode="reflect")
        expected = F.conv2d(grey.transpose(0, 1), kernels, groups=2).transpose(0, 1)
        torch.testing.assert_close(added(image, blend), expected, atol=2e-5 * float(kernels.abs().sum()), rtol=0)


def test_a_batch_of_tiles_shares_one_blend() -> None:
    image, blend = torch.rand(3, 3, 32, 32), torch.randn(1, FILTERS)
    torch.testing.assert_close(added(image, blend), added(image, blend.expand(3, -1)))


def test_the_quadratic_form_is_the_error_of_the_blend() -> None:
    generator = torch.Generator().manual_seed(2)
    degraded, clean = (torch.rand(2, 3, 40, 56, generator=generator) for _ in range(2))
    blend = 0.1 * torch.randn(2, FILTERS, generator=generator)
    forms, along, error = blend_forms(wiener_bank(), degraded, clean)
    found = error - 2 * (along * blend).sum(1) + torch.einsum("bi,bij,bj->b", blend, forms, blend)
    expected = (degraded + added(degraded, blend) - clean).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="smaller than the filters' reach"):
        blend_forms(wiener_bank(), degraded[..., :15], clean[..., :15])


def test_calibration_learns_to_sharpen_what_is_blurred_and_leaves_random_numbers_alone(
    tmp_path, write_photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusir.training.deblur._STEPS", 200)
    model, photos = random_model(CONFIGS["tiny"]), PhotoSet(write_photos(tmp_path, 6, size=96))
    plan = BatchPlan(16, 64, 0, counts=(0.3, 0.7))
    batches = [draw_batch(photos, plan, (0, index), {"gaussian_blur": 1.0}) for index in range(12)]
    state = torch.get_rng_state()
    assert calibrate_deblur(model, batches) > 0.5
    assert torch.equal(torch.get_rng_state(), state)
    blurred, cue = draw_batch(photos, BatchPlan(8, 64, 0, (0.0, 1.0)), (1, 0), {"gaussian_blur": 1.0}), model.cue
    assert cue is not None
    assert model.deblur is not None
    assert model.traces is not None
    with torch.inference_mode():
        seen = cue.statistics(blurred.degraded, model.traces(blurred.degraded))
        better = blurred.degraded + model.deblur(blurred.degraded, lambda: seen)
    assert (better - blurred.clean).square().mean() < (blurred.degraded - blurred.clean).square().mean()
    with pytest.raises(ValueError, match="no deblurring"):
        calibrate_deblur(random_model(CONFIGS["small"]), batches)


@torch.inference_mode()
def test_the_network_behind_sees_and_returns_the_deblurred_picture() -> None:
    model, image = random_model(CONFIGS["tiny"]), photo(64)
    assert model.deblur is not None
    torch.nn.init.zeros_(model.head.weight)  # no residual: what comes out is what goes in, tone-mapped
    torch.nn.init.zeros_(model.tone.coefficients.weight)
    torch.nn.init.zeros_(model.tone.coefficients.bias)
    seen: list[torch.Tensor] = []
    model.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pooled = PooledStatistics()
    restored = model(image, None, pooled).restored
    width = CONFIGS["tiny"].damage_cue
    better = image + added(image, pooled.recorded()[:, width : width + FILTERS])
    torch.testing.assert_close(restored, better, atol=1e-5, rtol=0)
    assert (better - image).abs().max() > 1e-3
    low = (better - 0.5).unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) / 2
    torch.testing.assert_close(seen[0][:, :3], low, atol=1e-5, rtol=0)
