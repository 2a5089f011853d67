"""Is the user's network a function of one picture? Research code often is not: noise in eval, batch statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusir.errors import UnsupportedModelError
from clusir.export.subjects.user_code import calling_user_line

__all__ = ["check_batch", "check_function", "first_tensor", "reference", "serve_other_pictures", "takes_batches"]

_RANDOM = frozenset(
    """rand randn randint rand_like randn_like randint_like normal normal_ uniform_ bernoulli bernoulli_ multinomial
    exponential_ random_ randperm gumbel_softmax log_normal_ cauchy_ geometric_ poisson""".split()  # noqa: SIM905
)


class _FindRandom(TorchFunctionMode):
    """Notes the line of the user's code that first asked torch for random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = ""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not self.line and getattr(func, "__name__", "") in _RANDOM:
            self.line = calling_user_line()
        return func(*args, **(kwargs or {}))


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in what a model returns: itself, or those of a tuple, list or dictionary, in order."""
    if isinstance(output, Tensor):
        return [output]
    values = list(output.values()) if isinstance(output, dict) else output
    return [v for v in values if isinstance(v, Tensor)] if isinstance(values, (list, tuple)) else []


def first_tensor(output: Any) -> Tensor:
    """The restored picture in what a model returns: the tensor, or the first one of a tuple, list or dictionary.

    Raises UnsupportedModelError where there is none.
    """
    for tensor in _tensors(output):
        return tensor
    raise UnsupportedModelError(
        f"the model returns {type(output).__name__}; it must return the restored picture, or a tuple, list or "
        "dictionary that begins with it"
    )


def serve_other_pictures(model: nn.Module, image: Tensor, names: Sequence[str]) -> set[str]:
    """Those of the parameters ``names`` that only other pictures depend on which ``model`` returns beside the first.

    Networks trained at several sizes return smaller restored pictures too, each from a convolution of its own.
    ``image``: BxCxHxW. Only pictures count (floating point, four axes, the batch and the channels of ``image``): what
    else a model returns, such as the losses of its routers, excuses nobody. A parameter that the first picture depends
    on as well, when the model itself runs, is none of them: there the trace has lost a route.
    """
    parameters = dict(model.named_parameters())
    wanted = [name for name in names if name in parameters and parameters[name].is_floating_point()]
    frozen = [parameters[name] for name in wanted if not parameters[name].requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            first, *others = _tensors(model(image))
            pictures = [other for other in others if (other.dim(), other.shape[:2]) == (4, image.shape[:2])]
            reached = _reached(pictures, [parameters[name] for name in wanted])
            needed = _reached([first], [parameters[name] for name in wanted])
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return {name for name, other, own in zip(wanted, reached, needed, strict=True) if other and not own}


def _reached(outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[bool]:
    """Of each parameter, whether a gradient of ``outputs`` reaches it."""
    traced = [output for output in outputs if output.requires_grad]
    if not traced or not parameters:
        return [False] * len(parameters)
    total = torch.stack([output.float().sum() for output in traced]).sum()
    return [g is not None for g in torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)]


@torch.no_grad()
def reference(model: nn.Module, images: Tensor) -> Tensor:
    """The model's answer, one picture at a time: what every artefact is compared with. BxCxHxW to the same."""
    return torch.cat([first_tensor(model(image[None])) for image in images])


def _largest(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the larger of 1 and the largest magnitude."""
    return float((a - b).abs().max()) / max(1.0, float(a.abs().max()))


@torch.no_grad()
def check_function(model: nn.Module, dense: nn.Module, images: Tensor) -> None:
    """Raise UnsupportedModelError unless ``model`` is a deterministic map from a picture to one of the same shape.

    ``images``: BxCxHxW, all different, each given alone. ``dense`` is the model with its described blocks made dense
    (the model itself where none is described); it must agree with the model picture by picture.
    """
    find = _FindRandom()
    with find:
        first = reference(model, images)
    if first.shape != images.shape:
        raise UnsupportedModelError(
            f"the model turns {_shape(images[:1])} into {_shape(first[:1])}; a restorer returns the picture's own shape"
        )
    if not bool(torch.isfinite(first).all()):
        raise UnsupportedModelError("the model returns values that are not finite; check its weights")
    change = _largest(first, reference(model, images))
    if change > 1e-6:
        where = f"; it draws random numbers at {find.line}" if find.line else ""
        raise UnsupportedModelError(
            f"the model is not deterministic in eval mode: the same picture gave answers that differ by {change:.2g}"
            f"{where}; make that conditional on self.training"
        )
    if dense is not model:
        apart = _largest(first, reference(dense, images))
        if apart > 1e-4:
            raise UnsupportedModelError(
                f"the description of the routed blocks does not say what the model does: answers differ by "
                f"{apart:.2g}; check gate and combine in register_moe"
            )


@torch.no_grad()
def check_batch(model: nn.Module, dense: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Raise UnsupportedModelError where a picture's answer depends on its neighbours in a batch; returns notes.

    What is exported, and so what must be right, is ``dense``; a model that is wrong itself is worth a note.
    """
    first = reference(model, images)
    together = _batched(dense, images)
    if isinstance(together, str):
        return (together,)
    apart = _largest(first, together)
    if apart > 1e-4:
        raise UnsupportedModelError(
            f"the model's answer to a picture depends on the other pictures of its batch (by {apart:.2g}): a statistic "
            "or a routing decision is taken over the batch; take it per sample, or describe the block with register_moe"
        )
    if dense is not model and _differs_in_batch(model, images, first):
        return ("the model itself is wrong for a batch of several pictures; the exported dense form is right for each",)
    return ()


def takes_batches(model: nn.Module, images: Tensor) -> bool:
    """Whether the model accepts several pictures at once, whatever it makes of them."""
    with torch.no_grad():
        return not isinstance(_batched(model, images), str)


def _batched(model: nn.Module, images: Tensor) -> Tensor | str:
    try:
        return first_tensor(model(images))
    except Exception as error:
        if images.shape[0] == 1:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the model takes one picture at a time (a batch raised: {reason[:120]})"


def _differs_in_batch(model: nn.Module, images: Tensor, single: Tensor) -> bool:
    together = _batched(model, images)
    return isinstance(together, str) or _largest(single, together) > 1e-4


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape))
