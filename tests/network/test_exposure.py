"""A gain and a shift of each colour: nothing until fitted, and where neither haze nor darkness may be mended."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clusir.network import checkpoint
from clusir.network.evidence import FAMILY_COUNT
from clusir.network.exposure import CORRECTIONS, SEEN, ExposureHead, correct, moved
from clusir.network.model import CONFIGS, ClusIR
from clusir.network.pooled import PooledStatistics

TINY = replace(CONFIGS["tiny"], permissions=True)
DARK = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
NOISY = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])


def moving() -> ClusIR:
    """A network whose tone map doubles what is there."""
    model = checkpoint.random_model(TINY)
    assert model.tone is not None
    assert model.tone.coefficients.bias is not None
    with torch.no_grad():
        model.tone.coefficients.bias[:3] = 1.0
    return model


def fitted(bias: float = 0.25) -> ClusIR:
    """A network that corrects whatever may be corrected, by numbers that depend on the picture."""
    model = moving()
    assert model.exposure is not None
    with torch.no_grad():
        model.exposure.say.bias.fill_(bias)
        model.exposure.say.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def restored(model: ClusIR, image: torch.Tensor, permissions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(image, permissions=permissions.expand(len(image), -1)).restored


def test_a_picture_is_corrected_where_haze_or_darkness_may_be_mended_and_only_there(image: torch.Tensor) -> None:
    plain, corrected = moving(), fitted()
    assert torch.equal(restored(corrected, image, NOISY), restored(plain, image, NOISY))
    for asked in (DARK, DARK.roll(-1)):
        before, after = (restored(model, image, asked) for model in (plain, corrected))
        a = after.flatten(2)
        b = torch.stack((before.flatten(2), torch.ones_like(a)), dim=3)  # one gain and one shift explain all of it
        found = torch.linalg.lstsq(b, a[..., None]).solution[..., 0]
        torch.testing.assert_close(b @ found[..., None], a[..., None], atol=1e-4, rtol=0)
        assert ((found - torch.tensor([1.0, 0.0])).abs() > 0.05).all()
        assert not torch.allclose(found[0], found[1], atol=1e-4)  # each picture its own


def test_half_a_permission_corrects_by_half(image: torch.Tensor) -> None:
    model = fitted()
    with torch.no_grad():
        model.exposure.say.weight.zero_()  # type: ignore[union-attr]
        full, half = (PooledStatistics() for _ in range(2))
        model(image, None, full, DARK.expand(2, -1))
        model(image, None, half, 0.5 * DARK.expand(2, -1))
    whole, part = (numbers.recorded() for numbers in (full, half))
    assert ((whole == 0.25).sum(dim=1) >= CORRECTIONS).all()
    assert ((part == 0.125).sum(dim=1) >= CORRECTIONS).all()


def test_in_training_nothing_is_corrected(image: torch.Tensor) -> None:
    plain, corrected = (model.train() for model in (moving(), fitted()))
    for module in (*plain.modules(), *corrected.modules()):
        if hasattr(module, "noise"):
            module.noise = 0.0
    torch.manual_seed(0)
    told = plain(image, permissions=DARK.expand(2, -1)).restored
    torch.manual_seed(0)
    assert torch.equal(corrected(image, permissions=DARK.expand(2, -1)).restored, told)


def test_tiles_share_one_correction(image: torch.Tensor) -> None:
    model = fitted()
    with torch.no_grad():
        pooled = PooledStatistics(together=True)
        done = model(image, None, pooled, DARK[None])
        assert pooled.recorded().shape == (1, model.statistics_size())
        routing = tuple((p.expand(2, -1), g.expand(2, -1)) for p, g in zip(done.posteriors, done.gates, strict=True))
        tiles = model(image, routing, PooledStatistics(pooled.recorded().expand(2, -1))).restored
    torch.testing.assert_close(tiles, done.restored, atol=2e-6, rtol=0)


def test_weights_without_such_a_head_correct_nothing(image: torch.Tensor) -> None:
    plain = moving()
    state = {name: value for name, value in plain.state_dict().items() if not name.startswith("exposure.")}
    found = fitted()
    found.load_state_dict(state)
    for parameter in plain.exposure.say.parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(parameter)
    assert torch.equal(restored(found, image, DARK), restored(plain, image, DARK))


def test_where_the_tone_map_did_nothing_nothing_is_corrected(image: torch.Tensor) -> None:
    model = fitted()
    assert model.tone is not None
    with torch.no_grad():
        for parameter in model.tone.coefficients.parameters():
            parameter.zero_()
    still = restored(model, image, DARK)
    for parameter in model.exposure.say.parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(parameter)
    assert torch.equal(restored(model, image, DARK), still)
    flat = torch.full((1, 3, 32, 32), 0.4)
    for change, much in ((0.0, 0.0), (0.02, 0.0), (0.04, 0.5), (0.3, 1.0)):
        assert float(moved(flat, flat + change)) == pytest.approx(much, abs=1e-3)
    windows = torch.cat((flat, flat + 0.2))  # two windows of one picture
    together = moved(windows, windows + 0.04, PooledStatistics(together=True))
    assert together.shape == (1, 1)
    assert float(together) == pytest.approx(0.5, abs=1e-3)


def test_a_correction_is_bounded_and_none_gives_back_the_same_bits(image: torch.Tensor) -> None:
    assert torch.equal(correct(image, torch.zeros(2, CORRECTIONS)), image)
    head = ExposureHead()
    for far, gain, shift in ((1e6, 2.0, 1.0), (-1e6, -0.8, -1.0)):
        with torch.no_grad():
            head.say.bias.fill_(far)
            said = head.judge(torch.zeros(1, SEEN))
        assert said.tolist() == [pytest.approx([gain] * 3 + [shift] * 3)]
    assert len(DARK) == FAMILY_COUNT
