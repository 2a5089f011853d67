"""Whether a file answers as the model does at a given size: asked while the size rule is being found."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from clusir.errors import ClusirError
from clusir.export.subjects.checks import reference
from clusir.export.validate.cases import probes
from clusir.export.validate.foreign import compare_answers
from clusir.runtimes import open_runner

__all__ = ["agreement_by_size"]


@contextlib.contextmanager
def agreement_by_size(
    model: onnx.ModelProto, user: nn.Module, channels: int, batch: int, backend: str
) -> Iterator[Callable[[int, int], bool]]:
    """(height, width) -> whether ``user`` takes that size and the ONNX model, on ``backend``, gives its answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, str(path))
        with open_runner(path, backend, "cpu") as runner:

            @torch.no_grad()
            def agrees(height: int, width: int) -> bool:
                pictures = probes(max(batch, 2), channels, height, width)[:batch]
                try:
                    want = reference(user, pictures)
                except ClusirError:
                    return False
                try:
                    got = runner.run({"image": pictures.numpy()})["restored"]
                    compare_answers(f"{backend}, {height}x{width}", want, got)
                except Exception:  # a runtime's own error is a size that the file does not serve
                    return False
                return True

            yield agrees
