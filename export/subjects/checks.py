"""Is the user's network a function of one picture? Research code often is not: noise in eval, batch statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError, first_line
from clusir.export.subjects.outputs import scale_of, tensors_of
from clusir.export.validate.compare import measure

__all__ = ["check_batch", "check_function", "check_steady", "first_tensor", "last_bit_moved", "reference"]

_MOST_MOVED = 1e-3  # in the mean of a picture; validation asks for 1e-4


def first_tensor(output: Any) -> Tensor:
    """The tensor that a model returns, or the first one of a tuple, list or dictionary.

    Raises UnsupportedModelError where there is none.
    """
    for tensor in tensors_of(output).values():
        return tensor
    raise UnsupportedModelError(
        f"the model returns {type(output).__name__}; it must return the restored picture, alone or in a tuple, list or "
        "dictionary"
    )


@torch.no_grad()
def reference(model: nn.Module, images: Tensor) -> Tensor:
    """The model's answer, one picture at a time: what every artefact is compared with. BxCxHxW to the same."""
    return torch.cat([first_tensor(model(image[None])) for image in images])


def _largest(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the larger of 1 and the largest magnitude; inf where one is not finite or has
    another shape."""
    scale = max(1.0, float(a.abs().max())) if bool(torch.isfinite(a).all()) else 1.0
    return measure(a.numpy(), b.numpy(), scale=scale).max_abs


@torch.no_grad()
def check_function(model: nn.Module, dense: nn.Module, images: Tensor, drew: str = "") -> Tensor:
    """What ``model`` answers to the images. Raises UnsupportedModelError unless it is a deterministic map from a
    picture to one of the same shape, or of a multiple of its height and width.

    ``images``: BxCxHxW, all different, each given alone. ``dense`` is the model with its described blocks made dense
    (or the model itself); it must agree with the model picture by picture. ``drew``: the line that draws at random.
    """
    first = reference(model, images)
    if not scale_of(images, first):
        raise UnsupportedModelError(
            f"the model turns {_shape(images[:1])} into {_shape(first[:1])}; a restorer returns the picture's own shape"
        )
    if not bool(torch.isfinite(first).all()):
        raise UnsupportedModelError("the model returns values that are not finite; check its weights")
    change = _largest(first, reference(model, images))
    if not (change <= 1e-6):
        where = f"; it draws random numbers at {drew}" if drew else ""
        raise UnsupportedModelError(
            f"the model is not deterministic in eval mode: the same picture gave answers that differ by {change:.2g}"
            f"{where}; make that conditional on self.training"
        )
    if dense is not model:
        apart = _largest(first, reference(dense, images))
        if not (apart <= 1e-4):
            raise UnsupportedModelError(
                f"the description of the routed blocks does not say what the model does: answers differ by "
                f"{apart:.2g}; check gate and combine in register_moe"
            )
    return first


def last_bit_moved(images: Tensor, draw: int = 0) -> Tensor:
    """The same pictures, BxCxHxW, with every pixel moved by its last bit at most, another way for each ``draw``; zeros
    stay zeros."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(5 + draw)) - 0.5
    return images * (1 + 2.0**-22 * noise)


@torch.no_grad()
def check_steady(model: nn.Module, images: Tensor, answers: Tensor | None = None) -> None:
    """Raise UnsupportedModelError where rounding decides the whole answer to each of the pictures, BxCxHxW: what sorts
    and scatters back again and again is another picture on every machine, whatever a file says. ``answers``: the
    model's, where they are known."""
    first = reference(model, images) if answers is None else answers
    largest = first.abs().flatten(1).amax(1).clamp(min=1.0)
    change = (reference(model, last_bit_moved(images)) - first).abs().flatten(1).mean(1) / largest
    least = float(change.min())
    if least > _MOST_MOVED:
        raise UnsupportedModelError(
            f"the model's own answer moves by {least:.2g} in the mean where its picture moves by the last bit: it "
            "sorts, compares or rounds what it computes, so that no two machines agree, and no file can be held to it; "
            "try trained weights, or take that step out of the model"
        )


@torch.no_grad()
def check_batch(model: nn.Module, dense: nn.Module, images: Tensor, batch: int) -> tuple[bool, tuple[str, ...]]:
    """Whether a file may take any number of pictures, and notes. ``batch``: how many it is asked to take.

    What is exported, and so what must be right, is ``dense``; a model that is wrong itself is worth a note. Where a
    picture's answer depends on its neighbours, one at a time is what can be said; raises UnsupportedModelError where
    several are asked for.
    """
    first = reference(model, images)
    together = _batched(dense, images)
    if isinstance(together, str):
        return False, (together,)
    apart = _largest(first, together)
    if not (apart <= 1e-4):
        why = (
            f"the model's answer to a picture depends on the other pictures of its batch (by {apart:.2g}): a statistic "
            "or a decision is taken over the batch"
        )
        if batch == 1:
            return False, (f"WARNING: {why}; the file takes one picture at a time",)
        raise UnsupportedModelError(f"{why}; give --input a batch of 1, or take it per sample")
    if dense is not model and _differs_in_batch(model, images, first):
        wrong = "the model itself is wrong for a batch of several pictures; the exported dense form is right for each"
        return True, (wrong,)
    return True, ()


def _batched(model: nn.Module, images: Tensor) -> Tensor | str:
    try:
        return first_tensor(model(images))
    except Exception as error:
        if images.shape[0] == 1:
            raise
        reason = first_line(error)
        return f"the model takes one picture at a time (a batch raised: {reason[:120]})"


def _differs_in_batch(model: nn.Module, images: Tensor, single: Tensor) -> bool:
    together = _batched(model, images)
    return isinstance(together, str) or not (_largest(single, together) <= 1e-4)


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape))
