"""The network as a function: shapes, determinism, independence of the batch, and the promises of each part."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from clusir.errors import UsageError
from clusir.network.checkpoint import random_model
from clusir.network.frequency import FourierSplit, FrequencyModulation, radial_frequency
from clusir.network.model import CONFIGS, ClusIR, ModelConfig
from clusir.network.pooled import PooledStatistics
from clusir.network.router import ClusterRouter, top_k_gate
from clusir.network.wavelet import haar_forward, haar_inverse

SMALLER = ModelConfig.from_dict(
    {**CONFIGS["small"].to_dict(), "widths": (8, 16, 32, 64), "blocks": (1, 1, 1, 1), "decoder_blocks": (1, 1, 1),
     "refine_blocks": 1, "prompt_width": 8, "prototype_dim": 16}
)  # fmt: skip


@pytest.fixture(scope="module", params=["tiny", "smaller"])
def model(request: pytest.FixtureRequest) -> ClusIR:
    return random_model(CONFIGS["tiny"] if request.param == "tiny" else SMALLER)


def picture(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_forward_returns_what_it_says(model: ClusIR) -> None:
    done = model(picture(2, 48, 64))
    config = model.config
    assert done.restored.shape == (2, 3, 48, 64)
    assert [p.shape for p in done.posteriors] == [(2, n) for n in config.clusters]
    assert [g.shape for g in done.gates] == [(2, config.experts)] * config.levels
    for posterior, probability in zip(done.posteriors, done.expert_probabilities, strict=True):
        torch.testing.assert_close(posterior.sum(1), torch.ones(2))
        torch.testing.assert_close(probability.sum(1), torch.ones(2))
    for gate in done.gates:
        assert (gate > 0).sum(1).tolist() == [config.top_k] * 2


@torch.inference_mode()
def test_recorded_statistics_replayed_give_the_same_picture(model: ClusIR) -> None:
    image, recorded = picture(2, 64, 48), PooledStatistics()
    done = model(image, None, recorded)
    assert torch.equal(done.restored, model(image).restored)
    statistics = recorded.recorded()
    assert statistics.shape == (2, model.statistics_size())
    routing = tuple(zip(done.posteriors, done.gates, strict=True))
    again = model(image, routing, PooledStatistics(statistics)).restored
    torch.testing.assert_close(again, done.restored, atol=2e-6, rtol=0)


@torch.inference_mode()
def test_nothing_else_is_pooled_over_the_picture(model: ClusIR) -> None:
    """With all that is pooled given, what happens in one corner does not reach the other."""
    exact = copy.deepcopy(model).double()
    image, recorded = picture(1, 192, 192).double(), PooledStatistics()
    done = exact(image, None, recorded)
    routing = tuple(zip(done.posteriors, done.gates, strict=True))
    changed = image.clone()
    changed[..., :16, :16] = 1.0
    given = recorded.recorded()
    far = [exact(x, routing, PooledStatistics(given)).restored[..., 88:104, 88:104] for x in (image, changed)]
    own = [found.restored[..., 88:104, 88:104] for found in (done, exact(changed))]
    assert (far[0] - far[1]).abs().max() < 1e-3 * (own[0] - own[1]).abs().max()


@torch.inference_mode()
def test_a_batch_taken_together_is_one_picture(model: ClusIR) -> None:
    def look(batch: torch.Tensor) -> list[torch.Tensor]:
        recorded = PooledStatistics(together=True)
        done = model(batch, None, recorded)
        return [recorded.recorded(), *done.posteriors, *done.expert_probabilities, *done.gates]

    dark, bright = 0.3 * picture(1, 64, 48, 0), 0.5 + 0.5 * picture(1, 64, 48, 1)
    alone, twice = look(dark), look(torch.cat((dark, dark)))
    mixed, swapped = look(torch.cat((dark, bright))), look(torch.cat((bright, dark)))
    assert mixed[0].shape == (1, model.statistics_size())
    for one, same, a, b in zip(alone, twice, mixed, swapped, strict=True):
        torch.testing.assert_close(same, one, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert (mixed[0] - alone[0]).abs().max() > 1e-3


@torch.inference_mode()
def test_a_sample_does_not_depend_on_its_neighbours(model: ClusIR) -> None:
    batch = torch.cat([picture(1, 64, 48, seed) * scale for seed, scale in ((0, 1.0), (1, 0.2), (2, 0.6))])
    together = model(batch)
    for index in range(3):
        alone = model(batch[index : index + 1])
        torch.testing.assert_close(alone.restored[0], together.restored[index], atol=2e-6, rtol=0)
        for a, b in zip(alone.gates, together.gates, strict=True):
            torch.testing.assert_close(a[0], b[index])
    again = model(batch)
    assert torch.equal(again.restored, together.restored)


@torch.inference_mode()
def test_given_routing_reproduces_the_own_one(model: ClusIR) -> None:
    image = picture(2, 32, 32)
    own = model(image)
    given = model(image, tuple(zip(own.posteriors, own.gates, strict=True)))
    torch.testing.assert_close(given.restored, own.restored)


@torch.inference_mode()
def test_every_expert_changes_the_picture(model: ClusIR) -> None:
    """A random model in which an expert had no effect would let a lost expert pass unseen."""
    image = picture(1, 32, 32)
    posteriors = model(image).posteriors
    results = []
    for expert in range(model.config.experts):
        gate = F.one_hot(torch.tensor([expert]), model.config.experts).float()
        results.append(model(image, tuple((p, gate) for p in posteriors)).restored)
    for a, b in itertools.combinations(results, 2):
        assert (a - b).abs().max() > 1e-4


def test_sizes_that_do_not_fit_are_named(model: ClusIR) -> None:
    with pytest.raises(ValueError, match=r"40x48; height and width must be multiples of 16"):
        model(picture(1, 40, 48))


@torch.inference_mode()
def test_an_untrained_network_returns_its_input() -> None:
    image = picture(1, 32, 32)
    torch.testing.assert_close(ClusIR(CONFIGS["tiny"]).eval()(image).restored, image)


def test_router_noise_is_for_training_only() -> None:
    router = ClusterRouter(8, 4, 8, 4, 1)
    features = picture(1, 16, 16).repeat(2, 3, 1, 1)[:, :8]
    router.eval()
    assert torch.equal(router(features).expert_probability[0], router(features).expert_probability[1])
    router.train()
    assert not torch.equal(router(features).expert_probability[0], router(features).expert_probability[1])


@pytest.mark.parametrize("k", [1, 2])
def test_ties_go_to_the_lowest_index(k: int) -> None:
    probability = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]])
    chosen = (top_k_gate(probability, k) > 0).int().tolist()
    assert chosen == ([[1, 0, 0, 0], [0, 1, 0, 0]] if k == 1 else [[1, 1, 0, 0], [0, 1, 0, 1]])
    if k == 1:
        assert top_k_gate(probability, 1)[1, 1] == 0.4  # the raw probability carries the router's gradient
    else:
        torch.testing.assert_close(top_k_gate(probability, 2).sum(1), torch.ones(2))


def test_haar_is_orthonormal_and_inverts() -> None:
    x = picture(2, 16, 24).double()
    low, high = haar_forward(x)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), x.square().sum())
    torch.testing.assert_close(haar_inverse(low, high), x)
    flat, edges = haar_forward(torch.ones(1, 1, 4, 4))
    assert edges.abs().max() == 0
    assert flat.unique().tolist() == [2.0]


def test_the_bands_add_up_and_the_low_band_is_low() -> None:
    split = FourierSplit(8, 4, 2)
    x, cue = torch.randn(2, 8, 32, 48), torch.randn(2, 4)
    low, high = split(x, cue)
    torch.testing.assert_close(low + high, x)
    rho = radial_frequency(32, 48)
    spectrum = torch.fft.rfft2(low).abs() / torch.fft.rfft2(x).abs()
    assert spectrum[..., rho < 0.01].mean() > 0.5
    assert spectrum[..., rho > 0.9].mean() < 0.05
    assert radial_frequency(8, 8)[4, 4] == pytest.approx(1.0)


def test_the_cue_moves_the_cut_off() -> None:
    torch.manual_seed(0)
    split = FourierSplit(8, 4, 2)
    x = torch.randn(1, 8, 32, 32)
    low_a, low_b = split(x, torch.full((1, 4), 3.0))[0], split(x, torch.full((1, 4), -3.0))[0]
    assert (low_a - low_b).abs().max() > 1e-3


def test_frequency_modulation_starts_as_the_identity() -> None:
    module = FrequencyModulation(8, 4, 2, 1, cross=True)
    x = torch.randn(1, 8, 16, 16)
    assert torch.equal(module(x, torch.randn_like(x), torch.randn(1, 4)), x)


def test_named_configurations_hold_their_budget() -> None:
    parameters = {name: sum(p.numel() for p in ClusIR(config).parameters()) for name, config in CONFIGS.items()
                  if name != "base"}  # fmt: skip
    assert parameters["tiny"] <= 1_500_000
    assert CONFIGS["base"].widths[0] == 48
    assert CONFIGS["small"].widths[0] == 32
    assert all(config.size_multiple == 16 for config in CONFIGS.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (1,)}, "as many blocks, heads and clusters"),
        ({"top_k": 9}, "top_k 9 is not within 1..4"),
        ({"norm": "batch"}, "norm 'batch' is not one of layer, none"),
        ({"frequency_levels": (7,)}, "are not within 1..3"),
        ({"colour": 1}, "unknown fields colour"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelConfig.from_dict({**CONFIGS["tiny"].to_dict(), **change})
