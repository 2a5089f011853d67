"""Which parts of ``tiny`` earn their place: short matched runs, and what each variant costs on the runtimes.

    python tests/bench/architecture.py train --data PHOTOS --out RUNS [--steps 300]
    python tests/bench/architecture.py time --out RUNS

``train`` gives every variant the same steps, seed and batches (clusir-train's own loop and losses), one after the
other, and goes on where it was stopped. ``time`` exports each untrained variant at 256 px and runs it beside ``tiny``
in turns, on one thread, by processor time; then it prints the table. A run of some hundred steps tells how fast a
variant learns, not where it ends: differences under a few hundredths of a dB are noise.

The yardstick is a plain UNet, no router and no FFT: NAFNet's blocks (Chen et al., arXiv 2204.04676) on a
pixel-unshuffle stem, at about tiny's multiply-accumulates. It has the restoration losses alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.graph.complexity import count_macs
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.pipeline import ExportConfig, write_graphs
from clusir.export.trace.writer import write_onnx
from clusir.network.model import CONFIGS, ClusIR
from clusir.training import losses
from clusir.training.data import BatchPlan, PhotoSet, draw_batch
from clusir.training.loop import Stage, TrainConfig, learning_rate, train
from clusir.training.monitor import validate
from tests.bench.timing import RUNTIMES, alternate

TINY = CONFIGS["tiny"]
NO_CUE: dict[str, Any] = {"damage_cue": 0, "deblur": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "channel LayerNorm": {"norm": "layer"},
    "gated feed-forward": {"feed_forward": "gdfn", "ffn_ratio": 2.0, "decoder_gains": False, **NO_CUE},
    "no decoder gains": {"decoder_gains": False, **NO_CUE},
    "no degradation cue, no deblurring": NO_CUE,
    "no deblurring": {"deblur": False},
    "no tone map": {"tone": False},
    "no picture statistics": {"traces": False, **NO_CUE},
    "DAFMM at levels 1, 2, 3": {"frequency_levels": (1, 2, 3)},
    "DAFMM at level 3": {"frequency_levels": (3,)},
    "no DAFMM": {"frequency_levels": ()},
    "experts with 3x3 kernels": {"expert_kernels": (3, 3, 3, 3)},
    "experts of half the width": {"expert_rank_fractions": (0.5,) * 4},
    "4 clusters a level": {"clusters": (4, 4, 4)},
    "16 clusters a level": {"clusters": (16, 16, 16)},
    "wider, shallower": {"widths": (40, 80, 120), "refine_blocks": 1},
    "narrower, deeper": {"widths": (24, 56, 80), "refine_blocks": 4},
    "attention in the decoder": {"decoder_attention": True, "decoder_gains": False, **NO_CUE},
    "concatenated skips": {"skip": "cat"},
}
YARDSTICK = "yardstick: plain UNet"


class GatedBlock(nn.Module):
    """NAFNet's block: gated depthwise convolution with pooled channel attention, then a gated 1x1 pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(2))
        self.enter, self.local = (
            nn.Conv2d(width, 2 * width, 1),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=2 * width),
        )
        self.pooled, self.leave = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.mix = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GLU(1), nn.Conv2d(width, width, 1))
        self.scale = nn.Parameter(torch.zeros(2, 1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.local(self.enter(self.norms[0](x))).chunk(2, 1)
        gated = a * b
        x = x + self.scale[0] * self.leave(gated * self.pooled(gated.mean((2, 3), keepdim=True)))
        return x + self.scale[1] * self.mix(self.norms[1](x))


class PlainUNet(nn.Module):
    """Bx3xHxW (multiples of 8) to the same; an untrained one returns its input."""

    def __init__(self, widths: tuple[int, ...] = (40, 80, 160), blocks: tuple[int, ...] = (4, 4, 3)) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(12, widths[0], 3, 1, 1), nn.Conv2d(widths[0], 12, 3, 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(GatedBlock(w) for _ in range(n))) for w, n in zip(widths, blocks, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*(GatedBlock(w) for _ in range(n))) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        steps = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, 2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 4 * f, 1), nn.PixelShuffle(2)) for f, c in steps)

    def forward(self, image: Tensor) -> Tensor:
        x, skips = self.stem(F.pixel_unshuffle(image, 2)), []
        for level, blocks in enumerate(self.encoder):
            x = blocks(self.down[level - 1](x) if level else x)
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](self.up[level](x) + skips[level])
        return image + F.pixel_shuffle(self.head(x), 2)


@dataclass(frozen=True)
class _Restored:
    restored: Tensor


class _Judged(nn.Module):
    """The yardstick as validation wants a network."""

    config = TINY

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, image: Tensor) -> _Restored:
        return _Restored(self.plain(image))


def train_yardstick(config: TrainConfig, data: Path) -> dict[str, float]:
    """The figures of :func:`clusir.training.monitor.validate` after the loop of clusir-train without its router
    losses."""
    torch.manual_seed(config.seed)
    network, photos = PlainUNet(), PhotoSet(data, "train")
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    stage = config.stages[0]
    for step in range(config.steps):
        used = step / config.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, used)
        plan = BatchPlan(stage.batch, stage.crop_px, stage.quads)
        batch = draw_batch(photos, plan, (config.seed, step, 0), config.weights)
        restored = network(batch.degraded)
        power = min(1.0, used / config.bend_until)
        loss = losses.log_error(restored, batch.clean, power)
        loss = loss + config.spectrum * losses.spectrum_error(restored, batch.clean, power)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        average.update_parameters(network)
    judged: Any = _Judged(average.module).eval()
    return validate(judged, PhotoSet(data, "validation"), config.validation_crop_px, config.validation_photos)


def train_all(data: Path, out: Path, steps: int) -> None:
    """One JSON line per variant in ``out/variants.jsonl``; those that are there are not run again."""
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "variants.jsonl"
    done = {json.loads(line)["name"] for line in journal.read_text().splitlines()} if journal.exists() else set()
    for name, changes in {"tiny": {}, YARDSTICK: None, **VARIANTS}.items():
        if name in done:
            continue
        config = TrainConfig(
            steps=steps, stages=(Stage(0.0, 16, 64, 2),), warmup_steps=30, calibrate_at=(0, 100), ema_decay=0.98,
            half_until=0.0, validate_every_s=1e9, save_every_s=1e9, deblur_batches=100,
        )  # fmt: skip
        figures: dict[str, float] = {}
        if changes is None:
            figures = train_yardstick(config, data)
        else:
            CONFIGS["variant"] = replace(TINY, **changes)
            with tempfile.TemporaryDirectory() as folder:
                train(
                    replace(config, model="variant"), data, Path(folder) / "run",
                    observe=lambda p, figures=figures: figures.update(p.validation or {}),
                )  # fmt: skip
        with journal.open("a") as file:
            file.write(json.dumps({"name": name, **figures}) + "\n")
        print(f"{name}: {figures['gain']:+.3f} dB", flush=True)


def written(name: str, folder: Path) -> bytes:
    """The variant, untrained, as the exporter writes it at 256 px."""
    torch.manual_seed(0)
    if name != YARDSTICK:
        network = ClusIR(replace(TINY, **VARIANTS[name])).eval()
        return write_graphs(network, folder, "v", ExportConfig(graphs=("whole",)))[0].path.read_bytes()
    graph = write_onnx(PlainUNet().eval(), (torch.rand(2, 3, 256, 256),), ("image",), ("restored",), dynamic_size=False)
    for step in (SimplifyGraph(), *fusing_passes()):
        graph = step.apply(graph).model
    return graph.SerializeToString()


def time_all(out: Path, runs: int) -> str:
    """The table of quality and cost, as Markdown."""
    import onnx

    rows = [json.loads(line) for line in (out / "variants.jsonl").read_text().splitlines()]
    feeds = {"image": np.random.default_rng(0).random((1, 3, 256, 256), dtype=np.float32)}
    lines = ["| variant | gain dB | kMAC/px | ONNX Runtime | OpenVINO |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        reference = written("tiny", Path(folder))
        for row in rows:
            graph = written(row["name"], Path(folder))
            ratios = []
            for opener in RUNTIMES.values():
                calls = {"tiny": opener(reference, feeds, 1), "variant": opener(graph, feeds, 1)}
                spent = alternate(calls, runs, cpu_clock=True)
                ratios.append(f"{spent['variant'].minimum_ms / spent['tiny'].minimum_ms:.2f}")
            macs = sum(count_macs(onnx.load_from_string(graph)).values()) / 256**2 / 1e3
            lines.append(f"| {row['name']} | {row['gain']:+.2f} | {macs:.1f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "time"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.action == "train":
        if options.data is None:
            parser.error("train needs --data FOLDER")
        train_all(options.data, options.out, options.steps)
    else:
        print(time_all(options.out, options.runs))


if __name__ == "__main__":
    main()
