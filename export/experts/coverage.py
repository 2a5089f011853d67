"""Are all weights of the network in the graph? A tracer that met a routed block keeps only what its sample chose.

Such a graph passes the checker and agrees with PyTorch on the sample, so nothing but a look at the weights, and inputs
that route differently, can tell. :func:`check_program` looks at a traced program, :func:`check_onnx` at a file of any
exporter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.splice import without_writes

__all__ = ["check_onnx", "check_program", "missing_from_onnx", "missing_from_program"]


def missing_from_program(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Names of the parameters from which no path leads to an output of the traced program. One that the network holds
    under several names is there where one of them is."""
    if not program.graph_signature.parameters:
        return ()
    program = without_writes(program)  # what is written into a view has no path; as a function it has
    parameters = program.graph_signature.inputs_to_parameters
    missing, present = [], set()
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in parameters:
            continue
        seen, queue, reached = {node}, [node], False
        while queue and not reached:
            for user in queue.pop().users:
                reached = reached or user.op == "output"
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
        name = parameters[node.name]
        if reached:
            present.add(_place(program.state_dict[name]))
        else:
            missing.append(name)
    return tuple(name for name in missing if _place(program.state_dict[name]) not in present)


def _place(weight: torch.Tensor) -> tuple[object, ...]:
    """Where in memory a weight lies, and how."""
    return weight.data_ptr(), weight.dtype, tuple(weight.shape), weight.stride()


def missing_from_onnx(model: onnx.ModelProto, weights: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the weights that no initializer of the file holds, branches of If included.

    A weight is found under its own name or, since exporters rename and transpose, by its values in any order.
    """
    stored = {t.name: numpy_helper.to_array(t) for t in _initializers(model.graph)}
    by_size: dict[int, set[str]] = {}
    for array in stored.values():
        by_size.setdefault(array.size, set())
    wanted = {n: w.detach().cpu().numpy() for n, w in weights.items()}
    absent = [n for n, w in wanted.items() if not (n in stored and stored[n].size == w.size)]
    sizes = {wanted[n].size for n in absent}
    for array in stored.values():
        if array.size in sizes:
            by_size[array.size].add(_fingerprint(array))
    return tuple(n for n in absent if _fingerprint(wanted[n]) not in by_size.get(wanted[n].size, ()))


def _initializers(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _initializers(inner)


def _fingerprint(array: np.ndarray) -> str:
    flat = np.sort(np.asarray(array, dtype=np.float32), axis=None)
    return hashlib.sha256(flat.tobytes()).hexdigest()


def check_program(
    program: torch.export.ExportedProgram,
    unused: Sequence[str] = (),
    prefix: str = "",
    excuse: Callable[[Sequence[str]], Collection[str]] | None = None,
) -> tuple[str, ...]:
    """Raise UnsupportedModelError where parameters are missing from a traced program; see ``_refuse``.

    ``excuse`` is asked which of the missing ones are rightly so, if there are any; those are returned.
    """
    missing = [n.removeprefix(prefix) for n in missing_from_program(program)]
    excused = excuse(missing) if excuse and missing else ()
    _refuse((n for n in missing if n not in excused), unused)
    return tuple(n for n in missing if n in excused)


def check_onnx(model: onnx.ModelProto, module: nn.Module, unused: Sequence[str] = ()) -> None:
    """Raise UnsupportedModelError where parameters of ``module`` are missing from an ONNX file.

    Meant for a graph before constants are folded into each other (a BatchNorm folded into a convolution hides both).
    """
    _refuse(missing_from_onnx(model, dict(module.named_parameters())), unused)


def _refuse(missing: Iterable[str], unused: Sequence[str]) -> None:
    """``unused`` are regular expressions (matched from the start) for weights that the user says are never used."""
    left = [n for n in missing if not any(re.match(pattern, n) for pattern in unused)]
    if left:
        owners = sorted({n.rpartition(".")[0] or n for n in left})
        shown = ", ".join(owners[:6]) + (f" and {len(owners) - 6} more" if len(owners) > 6 else "")
        pattern = "|".join(_shortened(left))
        raise UnsupportedModelError(
            f"{len(left)} parameters are missing from the traced graph, of {shown}: the trace kept one route of a "
            "routed block, or they are never used; describe the block with "
            "clusir.export.experts.registry.register_moe, or, if no picture ever needs them, put beside the factory: "
            f'from clusir.export.module import declare_unused; declare_unused(r"({pattern})$")'
        )


def _shortened(names: Sequence[str]) -> list[str]:
    """Regular expressions for exactly these names; where there are many, those of one module share its beginning."""
    if len(names) <= 24:
        return [re.escape(name) for name in names]
    by_owner: dict[str, list[str]] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        by_owner.setdefault(owner, []).append(leaf)
    shared: dict[tuple[str, ...], list[str]] = {}
    for owner, leaves in by_owner.items():
        shared.setdefault(tuple(leaves), []).append(owner)
    patterns = []
    for group, owners in shared.items():
        dot = re.escape(".") if owners != [""] else ""
        patterns.append(f"(?:{'|'.join(map(re.escape, owners))}){dot}(?:{'|'.join(map(re.escape, group))})")
    return patterns
