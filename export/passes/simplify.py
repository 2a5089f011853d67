"""Passes on the written ONNX graph: simplify, check the promises of the default form, add the metadata."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto

from clusir.errors import ExportError
from clusir.export.base import GraphPass, PassResult
from clusir.spec import ModelSpec

__all__ = ["AttachMetadata", "CheckStandard", "SimplifyGraph", "operators"]

_NOTES = ("clusir.", "pkg.", "onnxsim.")  # metadata of exporter and simplifier, and what is written anew
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """How often each operator occurs, branches of If and bodies of loops included; other domains as
    ``domain::name``."""
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"] += 1
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                counts += operators(inner)
    return counts


class SimplifyGraph(GraphPass):
    """Fold constants and remove what is dead or twice, with onnxsim (which, unlike onnxslim 0.1, keeps the
    metadata)."""

    name = "SimplifyGraph"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        try:
            from onnxsim import simplify
        except ImportError as error:
            note = f"onnxsim cannot be imported ({error}); the graph stays as the exporter wrote it"
            return PassResult(model, False, (note,))
        before = sum(operators(model.graph).values())
        # onnxsim compares nothing unless it is asked to: the graph is compared after the pass, and the file as a whole.
        simplified, _ = simplify(_without_defaults(model))
        _put_defaults_back(simplified, model)
        after = sum(operators(simplified.graph).values())
        return PassResult(simplified, after != before, (f"{before} nodes, now {after}",))


def _defaults(model: onnx.ModelProto) -> list[TensorProto]:
    """Initializers that are graph inputs too: whoever runs the graph may give other values."""
    inputs = {value.name for value in model.graph.input}
    return [tensor for tensor in model.graph.initializer if tensor.name in inputs]


def _without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with such inputs left open: onnxsim would fold their values and drop the inputs."""
    if not _defaults(model):
        return model
    names = {tensor.name for tensor in _defaults(model)}
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del plain.graph.initializer[:]
    plain.graph.initializer.extend(kept)
    return plain


def _put_defaults_back(made: onnx.ModelProto, model: onnx.ModelProto) -> None:
    made.graph.initializer.extend(_defaults(model))


class CheckStandard(GraphPass):
    """Refuse a graph that is not plain ONNX: custom domains, randomness, complex tensors, or (by default) DFT
    operators."""

    name = "CheckStandard"

    def __init__(self, allow_dft: bool = False) -> None:
        self.allow_dft = allow_dft

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        counts = operators(model.graph)
        foreign = sorted(k for k in counts if "::" in k)
        if foreign or model.functions:
            raise ExportError(f"the graph uses operators outside standard ONNX: {', '.join(foreign) or 'functions'}")
        random = sorted(k for k in counts if k.startswith("Random") or k in ("Bernoulli", "Multinomial"))
        if random:
            raise ExportError(f"the graph draws random numbers ({', '.join(random)}); the model is not in eval mode")
        if "DFT" in counts and not self.allow_dft:
            raise ExportError(f"{counts['DFT']} DFT operators are left; the FFT lowering did not reach them")
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(inferred, full_check=True)
        values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        if any(v.type.tensor_type.elem_type in _COMPLEX for v in values) or any(
            t.data_type in _COMPLEX for t in model.graph.initializer
        ):
            raise ExportError("the graph carries complex tensors, which no runtime here computes with")
        return PassResult(model, False, (f"standard opset {model.opset_import[0].version}, {len(counts)} operators",))


class AttachMetadata(GraphPass):
    """Write the ModelSpec into ``metadata_props`` and drop the exporter's notes on where every node came from; what
    others have written into the model's own metadata stays."""

    name = "AttachMetadata"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        described = onnx.ModelProto()
        described.CopyFrom(model)
        for node in described.graph.node:
            del node.metadata_props[:]
            node.ClearField("doc_string")
        for value in [*described.graph.value_info, *described.graph.input, *described.graph.output]:
            del value.metadata_props[:]
        del described.graph.metadata_props[:]
        mine = self.spec.to_metadata()
        foreign = {p.key: p.value for p in described.metadata_props if not p.key.startswith(_NOTES)}
        onnx.helper.set_model_props(described, mine | foreign)
        described.producer_name, described.producer_version = "clusir", str(self.spec.spec_version)
        return PassResult(described, True, (f"graph {self.spec.graph}, precision {self.spec.precision}",))

    def ensures(self, model: onnx.ModelProto) -> None:
        found = ModelSpec.from_metadata({p.key: p.value for p in model.metadata_props})
        if found != self.spec:
            raise ExportError("the metadata read back differs from what was written")
