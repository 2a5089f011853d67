"""The user's network as a plain function from a picture to the restored picture."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from clusir.errors import ClusirError, UnsupportedModelError, UsageError
from clusir.export.subjects.fresh import Fresh
from clusir.export.subjects.outputs import pick
from clusir.export.subjects.portable import portable
from clusir.export.subjects.user_code import innermost_user_line
from clusir.spec import OWN_ALPHA

__all__ = ["AnyOutput", "Mapped", "Restorer", "Unsullied", "user_error"]


def user_error(error: Exception) -> UnsupportedModelError:
    """An exception of the user's own code, with its line and, where it is known, what to do."""
    line = innermost_user_line(error.__traceback__)
    reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
    if isinstance(error, TypeError) and "forward() missing" in reason:
        return UnsupportedModelError(
            f"{reason}: a restorer takes one picture; name what is a picture of the same size, such as a mask, "
            "with --map; for a number that may be set write the file with torch.onnx.export and give it to --from with "
            "--set; for other inputs wrap the model in an nn.Module whose forward takes the picture alone and hands "
            "them over from buffers"
        )
    return UnsupportedModelError(f"{line}: the model's own code raised {type(error).__name__}: {reason}")


class Mapped(nn.Module):
    """A network of a picture and of ``maps``, by the names that its forward gives them, as one of a picture behind
    whose colours the maps lie. One of RGBA has no names for its channels: its one map is the picture's alpha, and of
    what it returns the colours are taken. Raises UsageError where forward has no such name."""

    def __init__(self, model: nn.Module, maps: Sequence[str]) -> None:
        super().__init__()
        self.model, self.maps = model, tuple(maps)
        has = inspect.signature(model.forward).parameters
        free = any(one.kind is one.VAR_KEYWORD for one in has.values())
        self.rgba = self.maps == (OWN_ALPHA,) and not free and OWN_ALPHA not in has
        for name in () if free or self.rgba else self.maps:
            if name not in has:
                raise UsageError(f"--map {name}: the model's forward takes {', '.join(has)}; give one of these names")

    def forward(self, image: Tensor) -> Any:
        if self.rgba:
            return tree_map(_colours, self.model(image))
        first = image.shape[1] - len(self.maps)
        maps = {name: image[:, first + n : first + n + 1] for n, name in enumerate(self.maps)}
        return self.model(image[:, :first], **maps)


def _colours(made: Any) -> Any:
    return made[:, :3] if isinstance(made, Tensor) and made.dim() == 4 and made.shape[1] == 4 else made


class AnyOutput(nn.Module):
    """The model as it is: image BxCxHxW -> whatever it returns; errors of its code name the line."""

    notes: set[str]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.notes = set()

    def forward(self, image: Tensor) -> Any:
        try:
            with portable() as mode:
                made = self.model(image.clone())  # which their code may scale or shift in place
        except ClusirError:
            raise
        except Exception as error:
            if torch.compiler.is_exporting():
                raise  # the tracer knows better what it means
            raise user_error(error) from error
        self.notes.update(mode.notes)
        return made


class Restorer(AnyOutput):
    """image BxCxHxW -> the restored picture, the tensor at ``place`` of what the model returns."""

    def __init__(self, model: nn.Module, place: str) -> None:
        super().__init__(model)
        self.place = place

    def forward(self, image: Tensor) -> Tensor:
        restored = pick(super().forward(image), self.place)
        if not torch.compiler.is_exporting() and not restored.is_floating_point():
            raise UnsupportedModelError(f"the model returns {restored.dtype}; a restored picture is floating point")
        return restored


class Unsullied(nn.Module):
    """A Restorer that answers every size from a copy which has seen no other size."""

    fresh: Fresh
    notes: set[str]

    def __init__(self, fresh: Fresh, place: str) -> None:
        super().__init__()
        self.model, self.fresh, self.place = fresh.model, fresh, place
        self.notes = set()
        self._live: tuple[Any, list[Restorer]] = (None, [])  # in a list: no submodule, its weights are model's

    def forward(self, image: Tensor) -> Tensor:
        if self._live[0] != image.shape[2:]:
            live = Restorer(self.fresh.make(), self.place)
            live.notes = self.notes
            self._live = (image.shape[2:], [live])
        answer: Tensor = self._live[1][0](image)
        return answer

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """A conversion (``double()``) is of the model that the copies are made of."""
        made = super()._apply(fn, recurse)
        self._live = (None, [])
        return made
