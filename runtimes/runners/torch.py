"""PyTorch: the reference. The only file under runtimes that imports torch and the network.

It reads the checkpoint itself (``.safetensors``) and answers as any of the three graphs an export consists of, so that
what is true of the ONNX files can be checked against it input by input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from clusir.degrade.kinds import FAMILY_NAMES
from clusir.errors import BackendError, UsageError
from clusir.names import install_line
from clusir.runtimes.machine.allowed import thread_limit
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.feeds import check_feeds
from clusir.spec import ModelSpec, SizeRequirements

if TYPE_CHECKING:
    import torch

__all__ = ["TorchRunner"]


class TorchRunner:
    """A checkpoint opened with PyTorch in float32.

    ``graph`` is ``whole``, ``tile`` (takes posterior, gate and pooled statistics) or ``router``, as in
    :class:`clusir.spec.ModelSpec`.
    ``threads`` sets PyTorch's pool for the whole process. Raises BackendError where torch or the device is not there.
    """

    def __init__(
        self, path: str | Path, device: str = "auto", threads: int | None = None, *, graph: str = "whole"
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendError(
                f"backend torch: torch cannot be imported ({error}); install it with: {install_line('torch')}, "
                "or use --backend ort"
            ) from error
        from clusir.network import checkpoint

        if Path(path).suffix != ".safetensors":
            raise UsageError(f"model {path}: backend torch reads .safetensors checkpoints; use --backend ort for ONNX")
        if device not in ("auto", "cpu", "cuda"):
            raise BackendError(f"device {device}: backend torch knows auto, cpu and cuda")
        has_cuda = torch.cuda.is_available()
        if device == "cuda" and not has_cuda:
            raise BackendError(
                f"device cuda: torch {torch.__version__} sees no CUDA device; "
                "use --device cpu or --fallback, or install a CUDA build from https://pytorch.org"
            )
        self._device = torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
        threads = threads or thread_limit()
        if threads:
            torch.set_num_threads(threads)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._model: Any = checkpoint.load(path).to(self._device).eval()
        config, head = self._model.config, self._model.evidence
        self.name = f"torch:{self._device.type}"
        self.spec = ModelSpec(
            name=Path(path).stem,
            graph=graph,
            checkpoint_sha256=checkpoint.sha256(path),
            size=SizeRequirements(multiple_of=config.size_multiple, minimum=config.size_multiple),
            clusters=tuple(config.clusters),
            experts=(config.experts,) * config.levels,
            top_k=config.top_k,
            statistics=0 if graph == "whole" else self._model.statistics_size(),
            families=() if head is None else FAMILY_NAMES,
            evidence_thresholds=() if head is None else tuple(head.thresholds.tolist()),
            evidence_floors=() if head is None else tuple(head.floors.tolist()),
        )
        self._inputs: dict[str, Sequence[int | str | None]] = {"image": (None, 3, None, None)}
        if graph == "tile":
            self._inputs |= {"posterior": (None, sum(self.spec.clusters)), "gate": (None, sum(self.spec.experts))}
            self._inputs["statistics"] = (None, self.spec.statistics)
        if graph == "router" and self.spec.families:
            self._inputs["permissions"] = (1, len(self.spec.families))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see :class:`clusir.runtimes.runners.base.Runner`. H and W must be multiples of the model's size
        rule."""
        import torch

        from clusir.network.pooled import PooledStatistics

        ready = check_feeds(feeds, self._inputs, self.name)
        multiple = self.spec.size.multiple_of
        height, width = ready["image"].shape[2:]
        if height % multiple or width % multiple:
            raise UsageError(
                f"{self.name}: image is {height}x{width}, height and width must be multiples of {multiple}"
            )
        tensors = {k: torch.from_numpy(v).to(self._device) for k, v in ready.items()}
        with torch.inference_mode():
            if self.spec.graph == "tile":
                given = PooledStatistics(tensors["statistics"])
                return {"restored": _numpy(self._model(tensors["image"], self._routing(tensors), given).restored)}
            recorded = PooledStatistics(together=self.spec.graph == "router")
            done = self._model(tensors["image"], None, recorded, tensors.get("permissions"))
            told = {} if done.evidence is None else {"evidence": _numpy(done.evidence)}
            posterior = _numpy(torch.cat(done.posteriors, dim=1))
            if self.spec.graph == "router":
                return {
                    "posterior": posterior,
                    "expert_probability": _numpy(torch.cat(done.expert_probabilities, dim=1)),
                    "statistics": _numpy(recorded.recorded()),
                    **told,
                }
            return {
                "restored": _numpy(done.restored),
                "posterior": posterior,
                "gate": _numpy(torch.cat(done.gates, dim=1)),
                **told,
            }

    def _routing(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The two joined vectors as one (posterior, gate) pair per level."""
        import torch

        posteriors = torch.split(tensors["posterior"], list(self.spec.clusters), dim=1)
        gates = torch.split(tensors["gate"], list(self.spec.experts), dim=1)
        return tuple(zip(posteriors, gates, strict=True))

    def expect(self, size: tuple[int, int] | None) -> None:
        """Nothing: PyTorch runs any size alike."""

    def placement(self) -> dict[str, int]:
        """``{"torch:<device>": n}``: the modules of the network that hold no others."""
        return {self.name: sum(1 for m in self._model.modules() if not list(m.children()))}

    def takes_batches(self) -> bool:
        return True

    def close(self) -> None:
        self._model = None

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _numpy(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float32)
