"""Where two artefacts part: the first tensor, in the order of computation, that differs by more than a tolerance.

Tensors are aligned by name. The passes of this project keep names: precisions of one export share almost all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from clusir import plain_json
from clusir.errors import ExportError, UsageError
from clusir.export.graph.session import Feeds, Probe
from clusir.export.quantize.layers import Graph, load_graph
from clusir.export.validate.compare import Difference, measure

__all__ = ["Divergence", "bisect", "bisect_values", "difference"]

# Tensors looked at in one run: all of them at once can be gigabytes.
_CHUNK = 48
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Divergence:
    """The first tensor over the tolerance, or how close everything is.

    ``tensor`` empty: none is over; ``relative`` and ``max_abs`` are then the largest seen. ``local_relative``: the
    error that the reproducer alone makes from inputs on which both agree (small: it grew little by little before).
    ``boundary``: inputs of the reproducer. ``files``: what was written.
    """

    tensor: str
    node: str
    op_type: str
    relative: float
    max_abs: float
    tolerance: float
    aligned: int
    local_relative: float | None = None
    boundary: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        return bool(self.tensor)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "boundary": list(self.boundary), "files": list(self.files), "found": self.found}

    def to_markdown(self) -> str:
        if not self.found:
            return (
                f"No tensor is over the tolerance {self.tolerance:g}: the largest relative error of {self.aligned} "
                f"aligned tensors is {self.relative:.2g}."
            )
        lines = [
            f"First over the tolerance {self.tolerance:g} of {self.aligned} aligned tensors: `{self.tensor}`, written "
            f"by {self.op_type} `{self.node}`: relative error {self.relative:.3g}, largest difference "
            f"{self.max_abs:.3g}.",
        ]
        if self.local_relative is not None:
            lines.append(
                f"From equal inputs ({', '.join(f'`{name}`' for name in self.boundary)}) the sub-graph alone errs by "
                f"{self.local_relative:.3g}."
            )
        if self.files:
            lines.append(f"Reproducer: {', '.join(self.files)}.")
        return "\n".join(lines)


def difference(expected: np.ndarray, got: np.ndarray) -> Difference:
    """As :func:`measure`; infinities and NaN that both have in the same places are equal (a mask holds -inf), and so
    are two empty tensors."""
    if expected.shape == got.shape and expected.size == 0:
        return Difference(0, 0.0, float("inf"), 0.0)
    return measure(expected, got, not_finite=True)


def bisect(
    a: Path | ModelProto, b: Path | ModelProto, feeds: Feeds, tolerance: float, out_dir: Path | None = None
) -> Divergence:
    """Compare two ONNX graphs on one input with ONNX Runtime on the CPU, unoptimised; ``a`` is the one that is trusted.

    ``tolerance`` bounds the relative error of each tensor. Into ``out_dir`` go ``a.onnx`` and ``b.onnx``, the smallest
    sub-graphs between tensors that still agree and the first that does not, ``inputs.npz``, ``expected.npz`` and
    ``divergence.json``. Raises UsageError where no tensor names match or an input is missing, ExportError where a graph
    does not run.
    """
    trusted, suspect = load_graph(a), load_graph(b)
    _need_inputs(trusted, feeds)
    if trusted.model.SerializeToString() == suspect.model.SerializeToString():
        # Two runs of one graph may still differ, where it draws random numbers.
        return Divergence("", "", "", 0.0, 0.0, _positive(tolerance), len(_float_outputs(suspect)))

    def values_of(names: Sequence[str]) -> dict[str, np.ndarray]:
        return dict(Probe(trusted.model, names, optimise=False).run(feeds))

    names = {name for node in trusted.model.graph.node for name in node.output if name}
    return _search(values_of, names, suspect, feeds, tolerance, out_dir, trusted)


def _need_inputs(graph: Graph, feeds: Feeds) -> None:
    for port in graph.model.graph.input:
        name, dims = port.name, [dim.dim_value for dim in port.type.tensor_type.shape.dim]
        if name in graph.initialisers:
            continue
        if name not in feeds:
            raise UsageError(f"no value was given for the graph input {name}; inputs are {', '.join(graph.inputs)}")
        given = np.shape(feeds[name])
        if len(given) != len(dims) or any(dim not in (0, side) for dim, side in zip(dims, given, strict=True)):
            takes = "x".join(str(dim or "?") for dim in dims)
            raise UsageError(
                f"the graph input {name} takes {takes} and is given {'x'.join(map(str, given))}; compare files whose "
                "inputs are alike"
            )


def _inner(graph: Graph) -> set[str]:
    """Float tensors that are no outputs of the graph."""
    return set(_float_outputs(graph)) - {value.name for value in graph.model.graph.output}


def _positive(tolerance: float) -> float:
    if not (tolerance > 0):
        raise UsageError(f"tolerance {tolerance} is not a positive number")
    return tolerance


def bisect_values(
    expected: Mapping[str, np.ndarray],
    b: Path | ModelProto,
    feeds: Feeds,
    tolerance: float,
    out_dir: Path | None = None,
) -> Divergence:
    """The same against known values (tensor name of ``b`` to array), for example from PyTorch: see ``bisect_torch``."""

    def values_of(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: expected[name] for name in names}

    return _search(values_of, set(expected), load_graph(b), feeds, tolerance, out_dir, None)


def _search(
    values_of: Any,
    known: set[str],
    suspect: Graph,
    feeds: Feeds,
    tolerance: float,
    out_dir: Path | None,
    trusted: Graph | None,
) -> Divergence:
    _positive(tolerance)
    _need_inputs(suspect, feeds)
    aligned = [name for name in _float_outputs(suspect) if name in known]
    if not aligned:
        raise UsageError(
            "the two models share no tensor name; compare two files of one export, or a file and its network"
        )
    agreed = set(suspect.inputs)
    seen = []
    for chunk in _chunks(aligned):
        want, got = values_of(chunk), Probe(suspect.model, chunk, optimise=False).run(feeds)
        for name in chunk:
            apart = difference(want[name], got[name])
            if not (apart.relative <= tolerance):
                if trusted is not None and not _inner(suspect) & known and _inner(trusted):
                    raise UsageError(
                        f"the two models share no tensor name but that of {name}, which differs: two networks, or one "
                        "written by two exporters; compare two files of one export"
                    )
                node = suspect.producer[name]
                found = Divergence(
                    name, node.name, node.op_type, apart.relative, apart.max_abs, tolerance, len(aligned)
                )
                return _reproduce(found, agreed, suspect, trusted, values_of, feeds, out_dir)
            agreed.add(name)
            seen.append((apart.relative, apart.max_abs))
    relative, max_abs = np.max(seen, axis=0).tolist()
    return Divergence("", "", "", relative, max_abs, tolerance, len(aligned))


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _CHUNK):
        yield list(names[start : start + _CHUNK])


def _float_outputs(graph: Graph) -> list[str]:
    """Float tensors in the order of computation; those whose type inference failed are left out."""
    values = (*graph.model.graph.value_info, *graph.model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type in _FLOATS}
    return [name for node in graph.model.graph.node for name in node.output if name in floats]


def _cut(graph: Graph, tensor: str, stop: set[str]) -> tuple[list[NodeProto], list[str]]:
    """The nodes that compute ``tensor`` from ``stop`` or graph inputs, in order, and which of those they read."""
    needed: set[str] = set()
    boundary: dict[str, None] = {}
    stack = [tensor]
    while stack:
        node = graph.producer.get(stack.pop())
        if node is None or node.name in needed:
            continue
        needed.add(node.name)
        for name in node.input:
            if not name or name in graph.initialisers:
                continue
            if name in stop or name not in graph.producer:
                boundary[name] = None
            else:
                stack.append(name)
    return [node for node in graph.model.graph.node if node.name in needed], list(boundary)


def _extract(graph: Graph, tensor: str, inputs: Mapping[str, np.ndarray]) -> ModelProto:
    """The sub-graph of ``tensor`` above ``inputs`` as a model of its own."""
    nodes, boundary = _cut(graph, tensor, set(inputs))
    used = {name for node in nodes for name in node.input}
    proto = helper.make_graph(
        nodes,
        "reproducer",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(inputs[n].dtype), inputs[n].shape)
            for n in boundary
        ],
        [onnx.ValueInfoProto(name=tensor)],
        [initialiser for name, initialiser in graph.initialisers.items() if name in used],
    )
    model = helper.make_model(proto, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(inferred)
    return inferred


def _reproduce(
    found: Divergence,
    agreed: set[str],
    suspect: Graph,
    trusted: Graph | None,
    values_of: Any,
    feeds: Feeds,
    out_dir: Path | None,
) -> Divergence:
    """Cut the suspect's sub-graph, feed it what the trusted side has at its border, and write all of it down."""
    _, boundary = _cut(suspect, found.tensor, agreed)
    computed = [name for name in boundary if name not in feeds]
    # At the border both agree within the tolerance; the suspect's values exist for every name.
    inputs = {name: feeds[name] for name in boundary if name in feeds}
    inputs |= Probe(suspect.model, computed, optimise=False).run(feeds) if computed else {}
    inputs = {name: np.asarray(inputs[name]) for name in boundary}
    sub = _extract(suspect, found.tensor, inputs)
    expected = values_of([found.tensor])[found.tensor]
    models = {"b.onnx": sub}
    if trusted is not None and all(name in trusted.producer or name in trusted.inputs for name in boundary):
        wanted = {name: values_of([name])[name] if name in trusted.producer else feeds[name] for name in boundary}
        models["a.onnx"] = _extract(trusted, found.tensor, wanted)
        expected = Probe(models["a.onnx"], optimise=False).run(_as_inputs(models["a.onnx"], inputs))[found.tensor]
    got = Probe(sub, optimise=False).run(inputs)[found.tensor]
    result = Divergence(
        **{**asdict(found), "local_relative": difference(expected, got).relative, "boundary": tuple(boundary)},
    )
    if out_dir is None:
        return result
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, model in models.items():
            onnx.save(model, out_dir / name)
        np.savez_compressed(out_dir / "inputs.npz", **inputs)  # type: ignore[arg-type]
        np.savez_compressed(out_dir / "expected.npz", **{found.tensor: expected})
        files = (*sorted(models), "inputs.npz", "expected.npz")
        result = Divergence(**{**asdict(result), "files": files})
        (out_dir / "divergence.json").write_text(plain_json.dumps(result.to_json(), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ExportError(f"the reproducer cannot be written to {out_dir} ({error}); choose another folder") from error
    return result


def _as_inputs(model: ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``inputs`` in the types that ``model`` takes: at a float16 border the trusted side has float32."""
    return {
        value.name: inputs[value.name].astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in model.graph.input
    }
