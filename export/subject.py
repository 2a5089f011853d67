"""Somebody else's network, read: run a few times, and refused at once where no file could say what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clusir.calibration.planes import colours_of
from clusir.errors import UnsupportedModelError
from clusir.export.base import Pipeline
from clusir.export.experts.coverage import check_program
from clusir.export.experts.registry import DensifyRegistered, dense_blocks
from clusir.export.scans.registry import check_scans
from clusir.export.subjects.checks import check_function, check_steady
from clusir.export.subjects.fresh import Fresh
from clusir.export.subjects.outputs import choose_output, scale_of
from clusir.export.subjects.restorer import AnyOutput, Restorer, Unsullied
from clusir.export.subjects.unused import Watched, watch
from clusir.export.validate.cases import probes
from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["Subject", "read_subject"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """The user's network, read: as it is, with described blocks dense, and what was found out by running it."""

    name: str
    shape: tuple[int, int, int, int]
    user: Unsullied
    dense: nn.Module  # never run; every trace and every check makes its own copy
    place: str
    routes: tuple[tuple[int, ...], ...]
    watched: Watched
    notes: tuple[str, ...]
    scale: int = 1

    def takes(self, height: int, width: int) -> bool:
        """Whether the model answers a picture of that size with one ``scale`` times as large."""
        return not self.refusal(height, width)

    def refusal(self, height: int, width: int) -> str:
        """What the model says to a picture of that size that it does not take; empty where it takes it."""
        picture = probes(1, self.shape[1], height, width)
        try:
            with torch.no_grad():
                made: Tensor = self.user(picture)
        except UnsupportedModelError as error:
            return str(error)
        if scale_of(picture, made) == self.scale:
            return ""
        return f"it answers {height}x{width} with {'x'.join(map(str, made.shape[2:]))}"

    def spec(self, rule: SizeRequirements, maps: Mapping[str, float], router: str, dft: str) -> ModelSpec:
        """All but tile and halo, which are measured. ``maps``: names and defaults of what comes with the picture."""
        channels = colours_of(self.shape[1])
        return ModelSpec(name=self.name, size=rule, tile_px=rule.padded(256), halo_px=0, channels=channels,
                         scale=self.scale, router_form=router, dft_form=dft, maps=tuple(maps),
                         map_defaults=tuple(maps.values()))  # fmt: skip

    def unrun(self) -> Restorer:
        """The dense form as it is, which only the tracer may call (it makes its own copy)."""
        return Restorer(self.dense, self.place)

    def fresh_dense(self) -> Restorer:
        """A copy of the dense form that has not run."""
        return Restorer(self.user.fresh.of(self.dense).make(), self.place)

    def check_weights(self, program: torch.export.ExportedProgram, unused: Sequence[str]) -> list[str]:
        """Refuse a trace that lost weights; those that the model itself never reads are left out, with a note."""
        idle = {n.removeprefix("model.") for n in self.watched.unreached}
        routed = bool(self.watched.read) or bool(dense_blocks(self.dense))
        left = check_program(
            program, unused, prefix="model.model.", excuse=lambda names: () if routed else idle & set(names)
        )
        if not left:
            return []
        owners = sorted({n.rpartition(".")[0] or n for n in left})
        shown = ", ".join(owners[:4]) + (f" and {len(owners) - 4} more" if len(owners) > 4 else "")
        return [
            f"WARNING: {len(left)} parameters that the restored picture does not depend on are left out, of {shown}"
        ]


def read_subject(
    name: str, fresh: Fresh, shape: tuple[int, int, int, int], output: str | None, progress: Progress
) -> Subject:
    """Run the model of ``fresh``; ``shape`` BxCxHxW is a size that it takes, ``output`` which tensor is the picture.

    Raises UnsupportedModelError where it is no deterministic function of one picture.
    """
    batch, channels, height, width = shape
    dense: nn.Module = Pipeline[Any]([DensifyRegistered()]).run(fresh.model)
    few = probes(max(2, batch), channels, height, width)
    progress("running the model: which output, what it depends on")
    place, notes = choose_output(AnyOutput(fresh.make()), few[:1], output)
    user = Unsullied(fresh, place)
    check_scans(Restorer(fresh.make(), place), few[:1])
    run = fresh.of(dense)
    watched = watch(Restorer(run.make(), place), few[:1])
    if watched.outside:
        raise UnsupportedModelError(
            "the model draws random numbers of Python or NumPy in eval mode; make that conditional on self.training"
        )
    same = user if dense is fresh.model else Restorer(run.make(), place)
    answers = check_function(user, same, few, watched.drew)
    check_steady(user, few, answers)
    routes = _routes(Restorer(run.make(), place), probes(24, channels, height, width))
    if routes and len(set(routes)) == 1:
        notes = (*notes, "all probe pictures took one route; the other experts were verified by forcing them")
    scale = scale_of(few, answers)
    return Subject(name, shape, user, dense, place, tuple(sorted(set(routes))), watched, notes, scale)


@torch.no_grad()
def _routes(dense: nn.Module, pictures: Tensor) -> list[tuple[int, ...]]:
    """For each picture, the expert with the largest gate in every described block."""
    blocks = dense_blocks(dense)
    if not blocks:
        return []
    routes = []
    for picture in pictures:
        for block in blocks:
            block.gates.clear()
        dense(picture[None])
        routes.append(tuple(int(g.reshape(1, g.shape[1], -1).mean(2).argmax()) for b in blocks for g in b.gates))
    return routes
