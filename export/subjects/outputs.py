"""Which of the tensors that a model returns is the restored picture.

Networks are returned from training code: several stages, several sizes, a picture beside features or losses, in a list,
a tuple or a dictionary, nested or not. The restored picture has the shape of the input, or is a whole number of times
as high and wide where none has it; where several could be it, it is the one that the others lead to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from clusir.calibration.planes import channels_fault, colours_of
from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.subjects.gradients import gradients
from clusir.spec import MAX_SCALE

__all__ = ["choose_output", "pick", "scale_of", "tensors_of"]


def scale_of(image: Tensor, made: Tensor) -> int:
    """How many times as high and wide as ``image`` (BxCxHxW) the picture ``made`` is, 1 to MAX_SCALE; 0 where it has
    another batch, other channels, or no such size. Maps behind the colours of ``image`` have no answer."""
    if made.dim() != 4 or tuple(made.shape[:2]) != (image.shape[0], colours_of(image.shape[1])):
        return 0
    scale, rest = divmod(made.shape[2], image.shape[2])
    fits = not rest and made.shape[3] == scale * image.shape[3] and 1 <= scale <= MAX_SCALE
    return scale if fits else 0


def tensors_of(output: Any) -> dict[str, Tensor]:
    """The tensors in what a model returns, by their place: ``""`` where it is one, else ``"[1]"``, ``"['x'][0]"``."""
    leaves, _ = tree_flatten_with_path(_opened(output))
    return {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _opened(output: Any) -> Any:
    """Records as dictionaries of their fields, also inside lists, tuples and dictionaries of any class: torch takes a
    class of its own, as records of models often are, for one value."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: _opened(getattr(output, f.name, None)) for f in dataclasses.fields(output)}
    if isinstance(output, SimpleNamespace):
        return {name: _opened(value) for name, value in vars(output).items()}
    if isinstance(output, Mapping):
        return {key: _opened(value) for key, value in output.items()}
    return type(output)(map(_opened, output)) if type(output) in (list, tuple) else output


def pick(output: Any, place: str) -> Tensor:
    """The tensor at ``place``. Raises UnsupportedModelError where the model returned something else this time."""
    found = tensors_of(output)
    if place not in found:
        raise UnsupportedModelError(
            f"the model returns another structure for this picture: no tensor at {place or 'the top'} "
            f"({', '.join(found) or type(output).__name__}); return the restored picture always in the same place"
        )
    return found[place]


def choose_output(model: nn.Module, image: Tensor, wanted: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The place of the restored picture in what ``model`` returns for ``image`` (BxCxHxW), and notes for the report.

    ``wanted`` is a position (``"1"``), a key of a dictionary or a place as :func:`tensors_of` writes it. Raises
    UsageError where there is no such output, and UnsupportedModelError where the model returns no picture of the shape
    of the input or a multiple of it, or several of which none follows from all others.
    """
    with gradients(model):
        found = tensors_of(model(image))
    shapes = ", ".join(f"{place or 'the output'} {_shape(t)}" for place, t in found.items())
    if wanted is not None:
        names = {place: place for place in found}
        names |= {str(number): place for number, place in enumerate(found)}
        names |= {place[2:-2]: place for place in found if place.startswith("['") and place.count("[") == 1}
        if wanted not in names:
            raise UsageError(f"--output {wanted!r}: the model returns {shapes or 'no tensor'}")
        place = names[wanted]
        if not scale_of(image, found[place]):
            raise UnsupportedModelError(_not_the_size(image, found[place]))
        return place, ()
    scales = {place: scale_of(image, t) for place, t in found.items() if t.is_floating_point()}
    chosen = [place for place, scale in scales.items() if scale == 1] or [p for p, scale in scales.items() if scale]
    pictures = {place: found[place] for place in chosen}
    if not pictures:
        if not found:
            raise UnsupportedModelError(
                "the model returns no tensor; it must return the restored picture, alone or in a tuple, list or "
                "dictionary"
            )
        raise UnsupportedModelError(_not_the_size(image, next(iter(found.values())), shapes))
    if len(found) == 1:
        return next(iter(found)), ()
    last = [p for p in pictures if all(_leads(pictures[q], pictures[p]) for q in pictures if q != p)]
    if len(last) > 1 and all(torch.equal(pictures[p], pictures[last[0]]) for p in last):
        last = last[:1]
    if len(last) != 1:
        raise UnsupportedModelError(
            f"the model returns several pictures of the input's shape ({', '.join(pictures)}), and none that follows "
            f"from all the others; say which is the restored one with --output, for example --output {_number(found)}"
        )
    return last[0], (f"the model returns {shapes}; the restored picture is {last[0]}",)


def _leads(first: Tensor, second: Tensor) -> bool:
    """Whether ``second`` is computed from ``first``, or from everything that ``first`` is computed from and more."""
    if first is second:
        return True
    nodes, seen = _history(second), _history(first)
    if first.grad_fn is not None and first.grad_fn in nodes:
        return True
    if second.grad_fn is not None and second.grad_fn in seen:
        return False
    mine, other = _leaves(seen), _leaves(nodes)
    return mine < other


def _history(tensor: Tensor) -> set[Any]:
    """Every step of autograd's graph behind a tensor."""
    nodes, queue = set(), [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        queue.extend(following for following, _ in node.next_functions)
    return nodes


def _leaves(nodes: set[Any]) -> set[int]:
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


def _number(found: dict[str, Tensor]) -> int:
    return len(found) - 1


def _not_the_size(image: Tensor, made: Tensor, shapes: str = "") -> str:
    head = f"the model turns {_shape(image)} into {_shape(made)}"
    if shapes.count("x") > 2 * _shape(made).count("x"):
        head = f"the model turns {_shape(image)} into {shapes}"
    if made.dim() == 4 and image.dim() == 4:
        if fault := channels_fault(colours_of(image.shape[1]), made.shape[1]):
            return f"{head}; {fault}"
        high, wide = made.shape[2] / image.shape[2], made.shape[3] / image.shape[3]
        if high == wide and high > 1:
            return f"{head}: {high:g} times the size; an answer is a whole number of times as large, 1 to {MAX_SCALE}"
    return f"{head}; a restorer returns the picture's own shape"


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape)) or "scalar"
