"""Which layers of a graph may become integers, which must not, and whose expert each one is.

A *layer* is a convolution with constant weights; its name is that of its weight tensor, which the whole, the tile and
the simplified graph of a network share (node names they do not).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from clusir.errors import ExportError
from clusir.export.graph.index import Names, inferred
from clusir.rounding import is_dense
from clusir.spec import ModelSpec

__all__ = ["FIRST", "Graph", "Layer", "groups_of", "load_graph", "metadata_of", "own_weights"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
NOMINAL_PX = 128
FIRST = "first convolution"
_EXPERTS = re.compile(r"^(?P<block>(?:.*\.)?experts)\.(?P<inside>.+)$")
_ONE_EXPERT = re.compile(r"^(?:experts\.)?(\d+)\.")
_ROUTER = re.compile(r"(?:^|\.)(?:router|gate_net|pcgrm)s?(?:\.|$)")


@dataclass(frozen=True)
class Layer:
    """One convolution. ``block`` is the module path of its weight less the last part, for totals per block.

    ``macs`` counts multiply-accumulates for one picture (of NOMINAL_PX, padded to the model's rule, where the size is
    not static). ``expert`` is (level, e);
    e = -1 for a layer that all experts of the level share. ``keep``: why the layer must stay in float, or empty.
    """

    name: str
    node: str
    weight_shape: tuple[int, ...]
    macs: int
    expert: tuple[int, int] | None = None
    keep: str = ""

    @property
    def block(self) -> str:
        return self.name.rsplit(".", 2)[0] if self.name.count(".") >= 2 else self.name

    @property
    def weights(self) -> int:
        return int(np.prod(self.weight_shape))

    @property
    def dense(self) -> bool:
        """Whether integers pay: see :func:`clusir.rounding.is_dense`."""
        return is_dense(self.weight_shape)


def _area(shape: Sequence[int]) -> int:
    """Height times width of a map BxCxHxW; 0 where they are not known."""
    return int(np.prod(shape[2:])) if len(shape) > 2 and min(shape[2:]) > 0 else 0


def groups_of(node: NodeProto) -> int:
    """The number of groups of a convolution."""
    return next((a.i for a in node.attribute if a.name == "group"), 1)


@dataclass
class Graph:
    """A model with its wiring: ``model`` has named nodes and inferred shapes; initialisers by name."""

    model: ModelProto
    spec: ModelSpec | None
    initialisers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    producer: dict[str, NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[NodeProto]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        given = {value.name for value in graph.input}  # an initializer among them is a default, no constant
        self.initialisers = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in given}
        for node in graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            self.shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)

    @property
    def inputs(self) -> list[str]:
        """Without numbers, which have defaults."""
        numbers = self.spec.numbers if self.spec is not None else ()
        names = [value.name for value in self.model.graph.input]
        return [name for name in names if name not in self.initialisers and name not in numbers]

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    def weight(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.initialisers[name])

    def node(self, layer: Layer) -> NodeProto:
        """The convolution of a layer of :meth:`layers`."""
        return next(node for node in self.consumers[layer.name] if node.name == layer.node)

    def convolutions(self) -> list[NodeProto]:
        """Convolutions with constant weights, in the graph's order."""
        return [n for n in self.model.graph.node if n.op_type in _CONVOLUTIONS and n.input[1] in self.initialisers]

    def layers(self) -> list[Layer]:
        """All convolutions in order, with their cost, their expert, and the reason to keep them in float if any."""
        nodes = self.convolutions()
        names = {node.name for node in nodes}
        last = self._last(names)
        router = self.router_nodes()
        sizes = self._sizes()
        experts = self._experts([node.input[1] for node in nodes])
        layers = []
        for node in nodes:
            name, area = node.input[1], _area(sizes.get(node.output[0], ()))
            keep = ""
            if node.name in router or _ROUTER.search(name):
                keep = "router"
            elif self._reads_picture(node, names):
                keep = FIRST
            elif node.name in last:
                keep = "last convolution"
            elif area == 1:
                keep = "acts on one vector per picture"
            dims = tuple(self.initialisers[name].dims)
            # A transposed convolution multiplies at each place of its input, the others at each of their output.
            places = area if node.op_type == "Conv" else _area(sizes.get(node.input[0], ()))
            macs = int(np.prod(dims)) * places
            layers.append(Layer(name, node.name, dims, macs, experts.get(name), keep))
        return layers

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, with a nominal height and width where the graph leaves them open."""
        if all(min(shape[1:], default=1) > 0 for shape in self.shapes.values()):
            return self.shapes
        side = self.spec.size.padded(NOMINAL_PX) if self.spec is not None else NOMINAL_PX
        graph = inferred(self.model, 1, data_prop=True, side=side)
        return {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*graph.input, *graph.value_info, *graph.output)
        }

    @property
    def main_output(self) -> str:
        """The restored picture: the output that the metadata names, else the first."""
        name = self.spec.output_name if self.spec is not None else ""
        return name if name in self.outputs else self.outputs[0]

    def _reads_picture(self, node: NodeProto, convolutions: set[str]) -> bool:
        """Whether a map of the picture reaches the convolution past no other convolution; what was computed from
        the picture on the way (statistics, a filtered copy that is added to it) does not matter."""
        stack, seen = [node.input[0]], set()
        while stack:
            name = stack.pop()
            if name in seen or self._one_vector(name):
                continue
            seen.add(name)
            if name in self.inputs:
                return True
            producer = self.producer.get(name)
            if producer is not None and producer.name not in convolutions:
                stack.extend(producer.input)
        return False

    def _last(self, convolutions: set[str]) -> set[str]:
        """Names of the convolutions with no other between them and the restored picture."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = [self.main_output]
        while stack:
            node = self.producer.get(stack.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            if node.name in convolutions:
                found.add(node.name)
            else:
                stack.extend(node.input)
        return found

    def router_nodes(self) -> set[str]:
        """Nodes that reach the picture only through a level's posterior, gate or expert probability."""
        cut = self._decisions()
        return self.nodes_before_routing() - self._ancestors([self.main_output], cut) if cut else set()

    def nodes_before_routing(self) -> set[str]:
        """Nodes whose results reach a level's posterior, gate or expert probability: what a router sees, and the
        routers. Empty where routing is given from outside."""
        return self._ancestors(self._decisions(), set())

    def _decisions(self) -> set[str]:
        cut: set[str] = set()
        for output in ("posterior", "gate", "expert_probability"):
            node = self.producer.get(output)
            if node is not None:
                cut |= {output, *(node.input if node.op_type == "Concat" else ())}
        return cut

    def before(self, nodes: set[str]) -> set[str]:
        """Names of the nodes that compute the first input of any of ``nodes``."""
        given = [node.input[0] for node in self.model.graph.node if node.name in nodes]
        return self._ancestors(given, set())

    def shown(self, nodes: set[str]) -> set[str]:
        """Those of ``nodes`` whose maps reach the restored picture as maps: what is only pooled is not shown."""
        found = set()
        for node in self.model.graph.node:
            stack, seen = list(node.output) if node.name in nodes else [], set[str]()
            while stack:
                name = stack.pop()
                if name in seen or self._one_vector(name):
                    continue
                seen.add(name)
                stack.extend(output for reader in self.consumers.get(name, []) for output in reader.output)
            if self.main_output in seen:
                found.add(node.name)
        return found

    def _one_vector(self, name: str) -> bool:
        shape = self.shapes.get(name)
        return shape is not None and (len(shape) < 4 or all(side == 1 for side in shape[2:]))

    def _ancestors(self, start: Iterable[str], cut: set[str]) -> set[str]:
        names: set[str] = set()
        stack = [tensor for tensor in start if tensor not in cut] if cut else list(start)
        while stack:
            node = self.producer.get(stack.pop())
            if node is None or node.name in names:
                continue
            names.add(node.name)
            stack.extend(tensor for tensor in node.input if tensor not in cut)
        return names

    def _experts(self, weights: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(level, expert) by weight name: levels are the blocks of experts in the graph's order."""
        blocks: list[str] = []
        found: dict[str, tuple[int, int]] = {}
        for name in weights:
            match = _EXPERTS.match(name)
            if match is None:
                continue
            if match["block"] not in blocks:
                blocks.append(match["block"])
            one = _ONE_EXPERT.match(match["inside"])
            found[name] = (blocks.index(match["block"]), int(one[1]) if one else -1)
        return found


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own, in place: a layer is told by its node."""
    taken: set[str] = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name, number = f"{node.op_type}_{index}", 0
            while name in taken:
                number += 1
                name = f"{node.op_type}_{index}_{number}"
            node.name = name
        taken.add(node.name)
        seen.add(node.name)


def own_weights(model: ModelProto) -> ModelProto:
    """The same model with a weight and a bias of its own for every convolution (a copy where one was shared).

    A layer in integers would otherwise take its weight along into whatever else reads it.
    """
    given = {v.name for v in model.graph.input}
    constants = {t.name: t for t in model.graph.initializer if t.name not in given}
    convolutions = [n for n in model.graph.node if n.op_type in _CONVOLUTIONS]
    # What something else reads, or an earlier convolution has, is not free any more.
    held = {name for n in model.graph.node if n.op_type not in _CONVOLUTIONS for name in n.input}
    held |= {v.name for v in model.graph.output}
    copies: list[tuple[str, int, str]] = []
    for node in convolutions:
        for at, name in list(enumerate(node.input))[1:]:
            if name in constants and name in held:
                copies.append((node.name, at, name))
            held.add(name)
    if not copies:
        return model
    out = ModelProto()
    out.CopyFrom(model)
    names, nodes = Names(out.graph), {n.name: n for n in out.graph.node}
    for node_name, at, name in copies:
        copy = out.graph.initializer.add()
        copy.CopyFrom(constants[name])
        copy.name = nodes[node_name].input[at] = names.fresh(f"{name}.{node_name}")
    return out


def metadata_of(model: ModelProto) -> dict[str, str]:
    """The model's ``metadata_props`` as a dictionary."""
    return {entry.key: entry.value for entry in model.metadata_props}


def load_graph(source: Path | ModelProto) -> Graph:
    """Read an ONNX model (external data beside it included), name its nodes, infer shapes.

    Raises ExportError where the file is not a model, or holds branches or loops: integers are made of the dense form.
    """
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
    else:
        try:
            model = onnx.load(source)
        except Exception as error:  # protobuf's errors have no common base that is public
            raise ExportError(f"{source} cannot be read as an ONNX model ({error}); export it again") from error
    inside = next((n for n in model.graph.node for a in n.attribute if a.HasField("g") or a.graphs), None)
    if inside is not None:
        experts = "; of experts that run in branches, quantise the dense form: --router dense"
        raise ExportError(
            f"{inside.op_type} {inside.name} holds a graph of its own; only plain graphs are quantised and bisected"
            f"{experts if inside.op_type == 'If' else ''}"
        )
    name_nodes(model)
    metadata = metadata_of(model)
    spec = ModelSpec.from_metadata(metadata) if "clusir.spec_version" in metadata else None
    return Graph(onnx.shape_inference.infer_shapes(model), spec)
