"""OpenVINO IR (``.xml`` with ``.bin``): ONNX files as OpenVINO's own, weights in the precision they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clusir.errors import BackendError, ExportError
from clusir.runtimes.runners.metadata import read_metadata
from clusir.runtimes.runners.quiet import import_openvino, unreported

__all__ = ["write_openvino"]


def write_openvino(models: Sequence[Path], folder: Path) -> list[Path]:
    """Converts each of ``models`` (``NAME.onnx``) to ``folder/NAME.xml``; returns the paths, in order.

    Nothing is compared here: what is written is for ``clusir.export.validate.files``, in OpenVINO. Raises BackendError
    where OpenVINO is not installed, ExportError where it refuses a graph.
    """
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise BackendError(
            f"--openvino: openvino cannot be imported ({error}); install it with: pip install 'clusir[openvino]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in models:
        target = folder / f"{path.name.removesuffix('.onnx')}.xml"
        try:
            with unreported():
                model = openvino.convert_model(path)
        except Exception as error:  # OpenVINO's exceptions share no base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ExportError(f"OpenVINO refuses {path.name}: {reason[:300]}") from error
        for key, value in read_metadata(path).items():
            if key.startswith("clusir."):
                model.set_rt_info(value, ["clusir", key.removeprefix("clusir.")])
        openvino.save_model(model, target, compress_to_fp16=False)
        written.append(target)
    return written
