"""What may be asked of an export of somebody else's module, and the runtimes that it is compared on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clusir.calibration.planes import channels_fault
from clusir.errors import BackendError, UsageError
from clusir.export.fastest import ROUTERS
from clusir.export.lowering.fft import FORMS, Form
from clusir.export.precision.place import check_fit
from clusir.export.precision.run import PrecisionConfig
from clusir.names import ONNX_BACKENDS, install_line, installed_backends
from clusir.spec import OWN_ALPHA

__all__ = ["ModuleOptions", "backends_of", "check_options", "notes_on_maps", "with_maps", "with_planes"]

_Shape = tuple[int, int, int, int]
_MOST_MAPS = {1: 1, 3: 8}  # by the channels of the picture


@dataclass(frozen=True)
class ModuleOptions:
    """How a model is exported.

    ``dft``: the form of transforms. ``router``: how described experts run, one of
    ROUTERS or ``auto``, the fastest of them on this machine. ``output``: which of the
    tensors that the model returns is the restored picture (a position or a key; None: found). ``batch``: 0 for any,
    else the one batch of the file. ``size``: 0 for any height and width, else the one side in pixels. ``tile`` and
    ``halo`` in pixels for those who cut pictures (None: chosen). ``backends``: the runtimes to validate on.
    ``precision``: which lower precisions are made beside the file, and how. ``maps``: further
    arguments of the model that are pictures of one channel and of the picture's size, by name, with the number 0..1
    that fills them where nobody gives one.
    """

    dft: Form = "auto"
    router: str = "dense"
    output: str | None = None
    batch: int = 0
    size: int = 0
    tile: int | None = None
    halo: int | None = None
    backends: tuple[str, ...] = ("ort", "openvino")
    precision: PrecisionConfig | None = None
    maps: Mapping[str, float] = field(default_factory=dict)


def check_options(options: ModuleOptions) -> None:
    """Raise UsageError for values that no export takes."""
    if options.dft not in FORMS:
        raise UsageError(f"--dft {options.dft!r} is not one of {', '.join(FORMS)}")
    if options.router not in (*ROUTERS, "auto"):
        raise UsageError(f"--router {options.router!r} is not one of {', '.join(ROUTERS)}, auto")
    if options.router == "merged" and not options.size:
        raise UsageError("--router merged needs --size: torch runs stacked weights for one size only")
    if options.router == "gathered" and options.batch != 1:
        raise UsageError("--router gathered needs --batch 1: each picture chooses weights of its own")
    check_fit(options.precision, options.batch, options.router)
    if options.batch < 0 or (options.size and not 8 <= options.size <= 4096):
        raise UsageError(
            f"--batch {options.batch}, --size {options.size}: a batch of at least 1, a size within 8..4096"
        )


def with_maps(shape: _Shape, maps: Mapping[str, float]) -> _Shape:
    """``shape`` BxCxHxW of a picture with ``maps``, by name and default, behind its channels. Raises UsageError for
    more of them than a file may have, for a name that the picture has, and for a default outside 0..1."""
    batch, channels, height, width = shape
    if len(maps) > _MOST_MAPS[channels]:
        raise UsageError(
            f"--map {', '.join(maps)}: a picture of {channels} channels has {_MOST_MAPS[channels]} at most"
        )
    for name, number in maps.items():
        if name == "image" or not 0 <= number <= 1:
            raise UsageError(f"--map {name}={number:g}: image is the picture, and a map is filled with 0..1")
    return batch, channels + len(maps), height, width


def with_planes(shape: _Shape, options: ModuleOptions) -> tuple[_Shape, ModuleOptions]:
    """``shape`` BxCxHxW of a picture with its maps behind its channels, and the options. Of RGBA alpha is a map, 1
    where a picture has none. Raises UsageError as :func:`with_maps`, and for other maps of RGBA."""
    batch, channels, height, width = shape
    if channels == 4 and options.maps:
        raise UsageError(f"--map {', '.join(options.maps)}: {channels_fault(4, 4)}")
    if channels == 4:
        channels, options = 3, replace(options, maps={OWN_ALPHA: 1.0})
    return with_maps((batch, channels, height, width), options.maps), options


def notes_on_maps(maps: Mapping[str, float]) -> list[str]:
    """What fills each map, by name and default, where nobody gives one."""
    own = f"a picture's own {OWN_ALPHA}, {{value:g}} where it has none"
    plain = "{name}={value:g} where nobody gives a picture of it"
    return [
        f"takes {(own if name == OWN_ALPHA else plain).format(name=name, value=value)}: clusir-run --set {name}=FILE"
        for name, value in maps.items()
    ]


def backends_of(options: ModuleOptions) -> tuple[list[str], str]:
    """The runtimes to validate on, and a note on those that were asked for and are not."""
    installed = installed_backends(ONNX_BACKENDS)
    backends = [b for b in installed if b in options.backends and (b == "ort" or options.dft != "op")]
    if options.dft == "op" and tuple(options.backends) == ("openvino",):
        raise UsageError("--dft op with --backends openvino: OpenVINO misreads DFT; use --backends ort")
    if not backends:
        raise BackendError(f"no runtime is installed to compare with; install one with: {install_line('onnxruntime')}")
    left = {"ort", "openvino"} - set(backends)
    if not left:
        return backends, ""
    asked = left & set(options.backends)
    why = "OpenVINO misreads DFT" if options.dft == "op" else "not installed" if asked else "not asked for"
    return backends, f"not validated on {', '.join(sorted(left))} ({why})"
