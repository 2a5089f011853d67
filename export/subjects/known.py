"""A file of weights of a published architecture, as the network that they belong to: found by spandrel.

spandrel (extra ``[zoo]``) knows some forty restorers and enlargers by the names and shapes of their weights. Those are
read without running code: safetensors, or torch's own file with ``weights_only``.
"""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clusir.calibration.planes import channels_fault
from clusir.errors import BackendError, ModelFormatError, UnsupportedModelError, UsageError, first_line
from clusir.spec import OWN_ALPHA

__all__ = ["Known", "Painter", "called", "for_any_number", "load_known"]

_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_SIDE_PX = 64
_INSTALL = 'pip install "clusir[zoo]" (docs/checkpoints.md says what fits a CPU build of torch)'


@dataclass(frozen=True)
class Known:
    """``network``: picture BxCxHxW in 0..1 -> the restored one; ``architecture``: its name; ``shape``: BxCxHxW that it
    takes; ``notes``: how it is called otherwise than spandrel does; ``maps``: pictures of one channel that its forward
    takes too, by name, with what fills them where nobody gives one."""

    network: nn.Module
    architecture: str
    shape: tuple[int, int, int, int]
    notes: tuple[str, ...] = ()
    maps: Mapping[str, float] = field(default_factory=dict)


_MASK = {"mask": 0.0}  # 1: what is to be painted; by default nothing
_OPAQUE = {OWN_ALPHA: 1.0}
_Call = Callable[[Callable[..., Any], Tensor], Tensor]
_RANDOMISES = "randomize_noise"  # StyleGAN2's argument: whether noise is drawn anew or read from the weights
_Colours = Callable[[Tensor], Tensor]
_COLOURS = ("rgb_to_linear_rgb", "linear_rgb_to_lab", "lab_to_rgb")  # of spandrel's DDColor
_GREY = (0.299, 0.587, 0.114)


class _Called(nn.Module):
    """A network, called as spandrel calls it, with further arguments."""

    def __init__(self, model: nn.Module, call: _Call, more: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.call, self.more = model, call, more

    def forward(self, image: Tensor) -> Tensor:
        if self.more:
            return self.call(lambda *args, **kwargs: self.model(*args, **{**kwargs, **self.more}), image)
        return self.call(self.model, image)


class Painter(nn.Module):
    """A network of a picture and a mask of what is to be painted, called as spandrel calls it."""

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.call(self.model, image, mask)


class _Coloured(nn.Module):
    """A network of a grey picture to a colour one, as one from colour to colour: RGB is made grey first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        grey = sum(share * image[:, n : n + 1] for n, share in enumerate(_GREY))
        answer: Tensor = self.model(grey)
        return answer


def called(model: nn.Module, call: _Call, channels: tuple[int, int] = (3, 3)) -> tuple[nn.Module, tuple[str, ...]]:
    """``model`` as ``call(model, picture)`` calls it, and notes. Noise that its forward would draw anew for each answer
    is that of its weights, where it can be asked for; of ``channels`` (in, out) 1 and 3 the network takes RGB."""
    more, notes = dict[str, Any](), list[str]()
    if _RANDOMISES in inspect.signature(model.forward).parameters:
        more[_RANDOMISES] = False
        notes.append(f"called with {_RANDOMISES}=False: noise is the one stored in the weights, not drawn anew")
    network: nn.Module = _Called(model, call, more)
    if channels == (1, 3):
        network = _Coloured(network)
        notes.append("takes a grey picture and returns a colour one: the file takes RGB and makes it grey first")
    return network.eval(), tuple(notes)


def for_any_number(name: str, call: _Call) -> _Call:
    """``call`` of the architecture ``name`` for any number of pictures, where spandrel's own takes one alone."""
    known: dict[str, Any] = getattr(call, "__globals__", {})
    if name == "DDColor" and all(helper in known for helper in _COLOURS):
        return _coloured_by(*(known[helper] for helper in _COLOURS))
    return call


def _coloured_by(linear: _Colours, to_lab: _Colours, from_lab: _Colours) -> _Call:
    """DDColor: the light of the picture as it is, its colour from the network's answer to a small one, both in Lab."""

    def light_of(rgb: Tensor) -> Tensor:
        return to_lab(rgb)[:, :1]

    def coloured(model: Any, grey: Tensor) -> Tensor:
        rgb = torch.cat([linear(grey)] * 3, 1)
        small = light_of(F.interpolate(rgb, size=model.input_size, mode="bilinear"))
        none = torch.zeros_like(small)
        colour = model(from_lab(torch.cat([small, none, none], 1)))
        colour = F.interpolate(colour, size=grey.shape[2:], mode="bilinear")
        return from_lab(torch.cat([light_of(rgb), colour], 1))

    return coloured


def load_known(path: str | Path) -> Known:
    """The network of a file of weights.

    Raises UsageError where there is no such file or its ending is unknown, BackendError where spandrel is not
    installed, ModelFormatError where the file holds no plain weights, UnsupportedModelError where no known architecture
    has such weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"checkpoint {path}: no such file")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"checkpoint {path}: the suffix is not one of {', '.join(_SUFFIXES)}")
    table = _weights(path)
    spandrel = _spandrel()
    weights = spandrel.canonicalize_state_dict(table)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        held = ", ".join(map(str, list(weights)[:6])) or "nothing"
        raise ModelFormatError(f"checkpoint {path}: no table of weights was found in it, only {held}")
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(weights)
    except spandrel.UnsupportedModelError as error:
        names = sorted(entry.architecture.name for entry in spandrel.MAIN_REGISTRY.architectures())
        raise UnsupportedModelError(
            f"checkpoint {path}: its {len(weights)} weights ({', '.join(list(weights)[:3])}, ...) are those of none of "
            f"the {len(names)} architectures that were looked for: {', '.join(names)}; bring its code with --module"
        ) from error
    except Exception as error:  # an architecture that recognises the file may still fail to build
        raise UnsupportedModelError(f"checkpoint {path}: {type(error).__name__}: {first_line(error, 200)}") from error
    return _described(path, found)


def _spandrel() -> Any:
    try:
        import spandrel
    except ImportError as error:
        raise BackendError(
            f"a checkpoint of another network needs spandrel ({error}); install it with: {_INSTALL}"
        ) from error
    except Exception as error:  # torchvision for another torch fails while it is imported, with a RuntimeError
        raise BackendError(f"spandrel cannot be imported ({first_line(error, 200)}); {_INSTALL}") from error
    try:
        import spandrel_extra_arches
    except ImportError:
        return spandrel
    spandrel_extra_arches.install(ignore_duplicates=True)
    return spandrel


def _weights(path: Path) -> dict[str, Any]:
    try:
        if path.suffix.lower() == ".safetensors":
            return dict(load_file(str(path)))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError) as error:
        raise ModelFormatError(f"checkpoint {path}: it is no file of weights ({first_line(error, 200)})") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ModelFormatError(
            f"checkpoint {path}: it holds more than weights, or is no file of torch; nothing in it was run. Save its "
            f"state_dict() alone, as .safetensors or with torch.save ({first_line(error, 200)})"
        ) from error
    if not isinstance(found, dict):
        raise ModelFormatError(f"checkpoint {path}: it holds {type(found).__name__}, not a table of weights")
    return found


def _described(path: Path, found: Any) -> Known:
    name = found.architecture.name
    channels: tuple[int, int] = (found.input_channels, found.output_channels)
    if channels not in ((1, 1), (3, 3), (1, 3), (4, 3), (4, 4)):
        raise UnsupportedModelError(
            f"checkpoint {path}: {name} takes {channels[0]} channels, returns {channels[1]}; "
            f"{channels_fault(*channels)}; export it with --module"
        )
    rule = found.size_requirements
    multiple = math.lcm(rule.multiple_of, 1)
    side = -(-max(_SIDE_PX, rule.minimum) // multiple) * multiple
    call = getattr(found, "_call_fn", None) or (lambda model, *given: model(*given))
    model = found.model.float().eval().requires_grad_(False)
    if found.purpose == "Inpainting":
        return Known(Painter(model, call).eval(), name, (1, channels[1], side, side), (), _MASK)
    network, notes = called(model, for_any_number(name, call), channels)
    maps = _OPAQUE if found.input_channels == 4 else {}
    return Known(network, name, (1, min(channels[1], 3), side, side), notes, maps)
