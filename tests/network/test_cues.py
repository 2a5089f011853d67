"""What steers the decoder: gains from clusters and cue, and the cue as one vector for a whole picture."""

from __future__ import annotations

import pytest
import torch

from clusir.errors import UsageError
from clusir.network.checkpoint import random_model
from clusir.network.cues import ClusterGain, DegradationCue
from clusir.network.model import CONFIGS, ModelConfig
from clusir.network.pooled import PooledStatistics
from clusir.network.traces import TRACES, DegradationTraces


def test_an_untrained_gain_is_one_and_a_trained_one_adds_clusters_and_cue() -> None:
    gain = ClusterGain(2, 3, cue=2)
    posterior, cue = torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, -0.5]])
    assert torch.equal(gain(posterior, cue), torch.ones(1, 3, 1, 1))
    assert gain.by_cue is not None
    with torch.no_grad():
        gain.by_cluster.weight.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.1], [0.0, 0.0]]))
        gain.by_cue.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.2], [0.1, 0.0]]))
    torch.testing.assert_close(gain(posterior, cue).flatten(), torch.tensor([1.25, 0.75, 2.0]))
    torch.testing.assert_close(gain(posterior).flatten(), torch.tensor([1.25, 1.75, 1.0]))


@torch.inference_mode()
def test_a_given_cue_is_taken_and_nothing_is_measured() -> None:
    def refuse() -> torch.Tensor:
        raise AssertionError("the traces of a tile were asked for although the picture's cue is given")

    image, cue = torch.rand(2, 3, 32, 32), DegradationCue(8)
    given = torch.rand(1, 8)
    assert torch.equal(cue(refuse, PooledStatistics(given)), given)
    recorded = PooledStatistics()
    found = cue(lambda: cue.statistics(image, DegradationTraces()(image)), recorded)
    assert found.shape == (2, 8)
    assert torch.equal(recorded.recorded(), found)


@torch.inference_mode()
def test_tiles_taken_together_have_one_cue() -> None:
    cue, tiles = DegradationCue(8), torch.rand(3, 3, 32, 32)
    found = []
    for batch in (tiles, tiles.flip(0)):
        pooled = PooledStatistics(together=True)
        statistics = cue.statistics(batch, DegradationTraces()(batch, pooled), pooled)
        found.append(cue(lambda statistics=statistics: statistics, pooled))
    assert found[0].shape == (1, 8)
    torch.testing.assert_close(found[0], found[1])


@torch.inference_mode()
def test_the_cue_reaches_the_picture_of_a_network_whose_routing_is_given() -> None:
    model, image = random_model(CONFIGS["tiny"]), torch.rand(1, 3, 32, 32)
    recorded = PooledStatistics()
    done = model(image, None, recorded)
    routing = tuple(zip(done.posteriors, done.gates, strict=True))
    statistics = recorded.recorded()
    other = statistics.clone()
    other[:, : CONFIGS["tiny"].damage_cue] *= -1  # the cue is the first of them
    pictures = [model(image, routing, PooledStatistics(s)).restored for s in (statistics, other)]
    assert (pictures[0] - pictures[1]).abs().max() > 1e-5
    torch.testing.assert_close(model(image, routing).restored, done.restored)


def test_a_cue_without_what_it_reads_or_steers_is_refused() -> None:
    assert TRACES > 0
    for missing in ("traces", "decoder_gains"):
        with pytest.raises(UsageError, match="damage_cue needs decoder_gains and traces"):
            ModelConfig.from_dict({**CONFIGS["tiny"].to_dict(), missing: False})
    for missing in ({"damage_cue": 0}, {"stem": "conv"}):
        with pytest.raises(UsageError, match="deblur needs damage_cue"):
            ModelConfig.from_dict({**CONFIGS["tiny"].to_dict(), **missing})
