"""ONNX Runtime's mobile format: ``.ort`` files, the operators they need, and what a phone's accelerators would take.

For every graph of a model (whole, tile, router) a ``.ort`` file is written, with the batch fixed to 1 and ONNX
Runtime's portable optimisations applied ahead (nothing that only runs on the exporting machine); beside them
``required_operators_and_types.config``, with which a minimal ONNX Runtime holds these kernels and no others, and
``usability.json`` / ``usability.txt``: how much of each graph NNAPI and CoreML would take, says ONNX Runtime's checker.

The converter is ``onnxruntime.tools``; this module fixes the batch, keeps its chatter off the terminal, and checks
every file it wrote against the one it came from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from clusir import plain_json
from clusir.errors import ExportError, UsageError
from clusir.export.quiet import hushed, printing_to, root_hushed
from clusir.export.validate.compare import Gates, check, compare
from clusir.export.validate.tolerances import tolerance
from clusir.markdown import table
from clusir.runtimes.machine.threads import set_threads
from clusir.runtimes.runners.numbers import number_feeds
from clusir.spec import ModelSpec

__all__ = ["MobileFile", "MobileReport", "write_ort_mobile"]

CONFIG_NAME = "required_operators_and_types.config"
_LOGGER = "ort_format_model.utils"  # the converter's


@dataclass(frozen=True)
class MobileFile:
    """One ``.ort`` file: where it came from, bytes, largest difference from it, and each accelerator's verdict."""

    graph: str
    path: str
    source: str
    bytes: int
    source_bytes: int
    max_abs: float
    usability: dict[str, str]


@dataclass(frozen=True)
class MobileReport:
    """All files of one conversion; ``operators`` is how many kernels the minimal build needs."""

    files: tuple[MobileFile, ...]
    config: str
    operators: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        """A section of the export report."""
        about = f"A minimal ONNX Runtime needs {self.operators} operators: `{self.config}`. Details: `usability.txt`."
        rows = [
            (f"`{file.path}`", file.graph, file.usability["NNAPI"], file.usability["CoreML MLProgram"],
             f"{file.bytes / 1e3:.0f}", f"{file.source_bytes / 1e3:.0f}", f"{file.max_abs:.2g}")
            for file in self.files
        ]  # fmt: skip
        head = ("file", "graph", "NNAPI", "CoreML", "kB", "of", "largest difference")
        return f"## ONNX Runtime Mobile\n\n{about}\n\n{table(head, rows, left=4)}"


def write_ort_mobile(models: Path | Sequence[Path], folder: Path) -> MobileReport:
    """Converts each of ``models`` (NAME.onnx) and the NAME.tile.onnx and NAME.router.onnx beside it into ``folder``.

    Raises UsageError where there is no such model, ExportError where the converter refuses, ValidationError where a
    converted file disagrees with its source by more than the fp32 tolerance (a quantised file: than INT8's PSNR).
    """
    named = [models] if isinstance(models, Path) else list(models)
    for model in named:
        if not model.is_file():
            raise UsageError(f"model {model}: no such file; --ort-mobile converts what clusir-export --onnx wrote")
    every = (path for model in named for path in _siblings(model) if path.is_file())
    sources = list(dict.fromkeys(every))  # two precisions share one router
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clusir-ort-") as scratch:
        fixed = [_fix_batch(path, Path(scratch) / path.name) for path in sources]
        chatter = _convert(Path(scratch), folder)
        verdicts = [_usability(path) for path in fixed]
        before = [path.stat().st_size for path in fixed]  # with their weights, which may lie beside the source
    config = folder / CONFIG_NAME
    config.write_text(config.read_text(encoding="utf-8").replace(f"{folder.resolve()}/", ""), encoding="utf-8")
    files = []
    for source, source_bytes, (verdict, _) in zip(sources, before, verdicts, strict=True):
        path = folder / f"{source.stem}.ort"
        if not path.is_file():
            raise ExportError(f"onnxruntime wrote no {path.name}: {chatter.strip().splitlines()[-1]}")
        spec = ModelSpec.from_metadata(_metadata(source))
        sizes = path.stat().st_size, source_bytes
        files.append(MobileFile(spec.graph, path.name, source.name, *sizes, _compare(source, path, spec), verdict))
    report = MobileReport(tuple(files), CONFIG_NAME, _count_operators(config))
    (folder / "usability.json").write_text(plain_json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / "usability.txt").write_text("\n".join(text for _, text in verdicts), encoding="utf-8")
    return report


def _siblings(model: Path) -> list[Path]:
    stem = model.name.removesuffix(".onnx")
    base = re.sub(r"\.(int8|fp16|fp32)$", "", stem)
    names = (f"{stem}.onnx", f"{stem}.tile.onnx", f"{base}.router.onnx", f"{base}.statistics.onnx")
    return [model.with_name(name) for name in names]


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def _fix_batch(source: Path, path: Path) -> Path:
    """A copy with every symbolic first dimension set to 1: NNAPI and CoreML take no open ones. A router that looks at
    several samples of a picture together and a statistics graph keep their own, and run, once a picture, on the
    CPU."""
    from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed

    model = onnx.load(source)
    spec = ModelSpec.from_metadata(_metadata(source))
    if spec.graph in ("router", "statistics") and spec.statistics:
        onnx.save(model, path)
        return path
    names = {port.type.tensor_type.shape.dim[0].dim_param for port in (*model.graph.input, *model.graph.output)}
    for name in sorted(names - {""}):
        make_dim_param_fixed(model.graph, name, 1)
    fix_output_shapes(model)
    onnx.save(model, path)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """The converter prints and logs; what it prints is kept for the error message."""
    with root_hushed(), printing_to(io.StringIO()) as out:
        # Where it is imported, it sets the level of its logger, and would give the root a handler.
        from onnxruntime.tools import convert_onnx_models_to_ort  # noqa: F401

        with hushed((_LOGGER,), logging.ERROR):
            yield out


def _convert(scratch: Path, folder: Path) -> str:
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    with _quiet() as out:
        try:
            convert_onnx_models_to_ort(
                scratch, folder, [OptimizationStyle.Fixed], target_platform="arm", enable_type_reduction=True
            )
        except Exception as error:
            raise ExportError(f"onnxruntime's converter refused: {' '.join(str(error).split())[:300]}") from error
    return out.getvalue()


def _usability(path: Path) -> tuple[dict[str, str], str]:
    """{accelerator: YES | MAYBE | NO}, and the checker's own words."""
    from onnxruntime.tools.mobile_helpers.usability_checker import analyze_model

    out = io.StringIO()
    logger = logging.Logger("usability", logging.INFO)  # of this call alone: getLogger gives one of the process
    logger.addHandler(logging.StreamHandler(out))
    with printing_to(io.StringIO()):
        analyze_model(path, logger=logger)
    text = f"# {path.name}\n" + out.getvalue().replace(str(path), path.name)
    found = re.findall(r"Model should perform well with (.+?) (?:as is|if modified.*?): (\w+)", text)
    return dict(reversed(found)), text  # the first verdict on each accelerator is on the model as it is


def _count_operators(config: Path) -> int:
    """Operators named in the config: lines of ``domain;opset;Name{types},Name,...``."""
    count = 0
    for line in config.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            names = re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "", line.split(";", 2)[-1])
            count += len([name for name in names.split(",") if name])
    return count


def _compare(source: Path, path: Path, spec: ModelSpec) -> float:
    """Largest absolute difference of the outputs on a seeded input; refuses more than the tolerance."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    set_threads(options)
    options.log_severity_level = 4
    sessions = [
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in (source, path)
    ]
    feeds = _example(sessions[0], spec)
    before, after = (_named(session, feeds) for session in sessions)
    bound = tolerance("fp32" if spec.graph == "router" else spec.precision)
    gates = Gates(spec.experts, spec.top_k) if spec.routed else None
    return check(compare(before, after, bound, gates), f"{path.name} against {source.name}").max_abs


def _example(session: Any, spec: ModelSpec) -> dict[str, np.ndarray]:
    """Seeded inputs: a picture of noise, vectors that sum to 1, and the defaults of numbers."""
    rng = np.random.default_rng(0)
    side = spec.size.static_px or spec.size.padded(64)
    feeds = dict(number_feeds(spec))
    for port in session.get_inputs():
        if port.name in feeds:
            continue
        shape = (1, port.shape[1], side, side) if len(port.shape) == 4 else (1, port.shape[1])
        values = rng.random(shape, dtype=np.float32)
        feeds[port.name] = values if len(shape) == 4 else values / values.sum()
    return feeds


def _named(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((port.name for port in session.get_outputs()), session.run(None, dict(feeds)), strict=True))
