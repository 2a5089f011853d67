"""What a tile graph would gain that holds only the experts a picture was given: time, and what opening it costs.

    python -m tests.bench.bounds.picked_experts [NAME.tile.onnx] [--rounds 15]

The graph as it is (every expert, weighted by its gate), and without the channels that one choice of experts leaves at
zero: the first, then the last expert of each block. ``known`` also has the picture's posterior, gates and statistics as
constants, so that a runtime may compute beforehand what follows from them; ``no deblurring`` takes the picture as it
is. One thread, processor time, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from clusir.export.graph.edit import sort_nodes
from clusir.spec import ModelSpec
from tests.bench.timing import RUNTIMES, Call, alternate, ort_call

CHOICES = {"first": 0, "last": -1}
_OPENINGS = 3


class Picked:
    """The tile graph without the channels that a choice of experts multiplies by zero."""

    def __init__(self, model: ModelProto, feeds: Mapping[str, np.ndarray]) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.producer = {o: node for node in self.graph.node for o in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.count = self.dropped = 0
        weights = self._gated()
        values = dict(zip(weights, self._values(list(weights), feeds), strict=True))
        for name, convolution in weights.items():
            kept = np.flatnonzero(values[name].ravel())
            if len(kept) < values[name].size:
                self.dropped += values[name].size - len(kept)
                weight = self.constants[convolution.input[1]]
                convolution.input[0] = self.cut(convolution.input[0], kept)
                convolution.input[1] = self._constant(weight[:, kept])
        ordered = [NodeProto.FromString(n.SerializeToString()) for n in sort_nodes(self._needed())]
        del self.graph.node[:]
        self.graph.node.extend(ordered)

    def _gated(self) -> dict[str, NodeProto]:
        """What each block's channels are weighted by, as it comes from the gate, and the convolution behind."""
        known, found = {"gate"}, {}
        for node in sort_nodes(list(self.graph.node)):
            given = [i for i in node.input if i not in self.constants]
            if given and all(i in known for i in given):
                known.update(node.output)
            elif node.op_type == "Mul" and any(i in known for i in node.input):
                behind = [n for n in self.graph.node if node.output[0] in n.input]
                if len(behind) == 1 and behind[0].op_type == "Conv":
                    found[next(i for i in node.input if i in known)] = behind[0]
        return found

    def _values(self, names: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        asked = ModelProto()
        asked.CopyFrom(self.model)
        asked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        return ort_call(asked.SerializeToString(), feeds, 1)()[1:]

    def cut(self, value: str, kept: np.ndarray) -> str:
        """The channels ``kept`` of a value, computed without the others where its operators go channel by channel."""
        node = self.producer.get(value)
        kind = "" if node is None else node.op_type
        if node is None or kind not in ("Mul", "Sigmoid", "Concat", "Conv"):
            return self._node("Gather", [value, self._constant(kept)], axis=1)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if kind == "Conv":
            alone = attributes["group"] == len(self.constants[node.input[1]]) if "group" in attributes else False
            given = self.cut(node.input[0], kept) if alone and len(kept) > 1 else node.input[0]
            attributes |= {"group": len(kept)} if alone else {}
            numbers = [self._constant(self.constants[i][kept]) for i in node.input[1:]]
            return self._node("Conv", [given, *numbers], **attributes)
        if kind == "Concat":
            parts, start = [], 0
            for part in node.input:
                width = self._channels(part)
                mine = kept[(kept >= start) & (kept < start + width)] - start
                parts += [] if not len(mine) else [part if len(mine) == width else self.cut(part, mine)]
                start += width
            return parts[0] if len(parts) == 1 else self._node("Concat", parts, axis=1)
        return self._node(kind, [self.cut(i, kept) for i in node.input])

    def _channels(self, value: str) -> int:
        return len(self.constants[self.producer[value].input[1]])  # of a convolution

    def _constant(self, array: np.ndarray) -> str:
        self.count += 1
        name = f"picked{self.count}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        self.count += 1
        node = helper.make_node(kind, inputs, [f"picked{self.count}"], name=f"picked{self.count}", **attributes)
        self.graph.node.append(node)
        return str(node.output[0])

    def _needed(self) -> list[NodeProto]:
        producer = {o: node for node in self.graph.node for o in node.output}
        queue, seen = [o.name for o in self.graph.output], set[str]()
        while queue:
            value = queue.pop()
            if value in producer and value not in seen:
                seen.update(producer[value].output)
                queue += producer[value].input
        return [node for node in self.graph.node if node.output[0] in seen]


def known(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> ModelProto:
    """The graph with every input but the picture as a constant."""
    made = ModelProto()
    made.CopyFrom(model)
    for value in [value for value in model.graph.input if value.name != "image"]:
        made.graph.input.remove(value)
        made.graph.initializer.append(numpy_helper.from_array(feeds[value.name], value.name))
    return made


def undeblurred(model: ModelProto) -> ModelProto:
    """The graph with the picture in place of the sum of it and what deblurring adds."""
    made = ModelProto()
    made.CopyFrom(model)
    total = next(n.output[0] for n in made.graph.node if n.op_type == "Add" and "image" in n.input)
    for node in made.graph.node:
        node.input[:] = ["image" if i == total else i for i in node.input]
    return made


def feeds_of(model: ModelProto, place: int) -> dict[str, np.ndarray]:
    spec = ModelSpec.from_metadata({p.key: p.value for p in model.metadata_props})
    rng = np.random.default_rng(0)
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    feeds = {name: rng.random(shape, dtype=np.float32) / 10 for name, shape in shapes.items()}
    gates = [np.eye(count, dtype=np.float32)[place] / 2 for count in spec.experts]
    return feeds | {"gate": np.concatenate(gates)[None]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, nargs="?", default=Path(str(files("clusir.weights") / "tiny.tile.onnx")))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    every = onnx.load(options.graph)
    print("| experts | graph | runtime | ms | of every expert | by the medians | opening, ms | differs |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for choice, place in CHOICES.items():
        feeds = feeds_of(every, place)
        picked = Picked(every, feeds)
        if not picked.dropped:
            raise SystemExit(f"{options.graph}: no channel falls away; it has to be a tile graph of merged experts")
        cut = picked.model
        forms = {"every": every, "picked": cut, "picked, known": known(cut, feeds)}
        forms["picked, known, no deblurring"] = undeblurred(forms["picked, known"])
        calls: dict[tuple[str, str], Call] = {}
        opening, answers = {}, {}
        for runtime, opener in RUNTIMES.items():
            for form, model in forms.items():
                given = {v.name: feeds[v.name] for v in model.graph.input}
                graph, spent = model.SerializeToString(), []
                for _ in range(_OPENINGS):
                    start = time.process_time()
                    call = opener(graph, given, 1)
                    spent.append(time.process_time() - start)
                key = (runtime, form)
                calls[key], opening[key], answers[key] = call, 1e3 * min(spent), call()[0]
        times = alternate(calls, options.rounds, cpu_clock=True)  # type: ignore[arg-type, type-var]
        for key, time_ms in times.items():  # type: ignore[assignment]
            base = times[key[0], "every"]  # type: ignore[index]
            ratios = f"{time_ms.minimum_ms / base.minimum_ms:.3f} | {time_ms.median_ms / base.median_ms:.3f}"
            off = np.abs(answers[key] - answers[key[0], "every"]).max()
            cells = f"{time_ms.minimum_ms:.1f} | {ratios} | {opening[key]:.0f} | {off:.0e}"
            print(f"| {choice} | {key[1]} | {key[0]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
