"""One row: weights in a file, exported as a user would, and compared with the network at sizes that were not traced."""

from __future__ import annotations

import importlib
import json
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clusir.calibration.balance import BalanceConfig
from clusir.calibration.planes import colours_of, maps_for
from clusir.errors import ClusirError, UsageError
from clusir.export.module import export_module
from clusir.export.precision.run import PrecisionConfig, make_precisions
from clusir.export.subjects.known import Known, Painter, called, for_any_number, load_known
from clusir.export.subjects.restorer import Mapped
from clusir.runtimes import open_runner
from clusir.spec import SizeRequirements
from tests.bench.zoo.cpp import agreement
from tests.bench.zoo.networks import AS_MODULE, COLOURS, PAINTERS, build, call_of, save, side

BACKENDS = ("ort", "openvino")
BATCH = 2
Picture = np.ndarray[Any, np.dtype[np.float32]]
Row = dict[str, Any]


def known(name: str, folder: Path) -> tuple[Known, int]:
    """The network of ``name``, read from a file of its weights, and how many they are."""
    if name in AS_MODULE:
        model = build(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        if name in PAINTERS:
            return Known(Painter(model, call_of(name)), name, (1, 3, side(name), side(name)), (), {"mask": 0.0}), count
        call = for_any_number(name, call_of(name))
        network, notes = called(model, call, (1, 3) if name in COLOURS else (3, 3))
        return Known(network, name, (1, 3, side(name), side(name)), notes), count
    path = folder / f"{name}.pth"
    count = save(name, path)
    try:
        return load_known(path), count
    finally:
        path.unlink()


def as_one(known: Known) -> nn.Module:
    """The network as a function of one input, its maps behind the picture's channels."""
    return Mapped(known.network, tuple(known.maps)) if known.maps else known.network


def picture(seed: int, channels: int, height: int, width: int) -> Picture:
    """Smooth light with edges and noise: channels x height x width in 0..1, the last of them maps."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 24.0
    planes = [0.5 + 0.3 * np.sin(x * draw.uniform(0.5, 2) + draw.uniform(0, 6)) * np.cos(y * draw.uniform(0.5, 2))
              for _ in range(channels)]  # fmt: skip
    made = np.stack(planes) + 0.15 * (np.floor(x + y) % 2) + draw.normal(0, 0.03, (channels, height, width))
    colours = made[: colours_of(channels)].clip(0, 1).astype(np.float32)
    return np.concatenate([colours, maps_for(channels, height, width, seed)])


def untraced(size: SizeRequirements, seen: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Three sizes that the file takes and that nothing was traced or compared at: wide, tall, and nearly square."""
    step, made = size.multiple_of, []
    for height, width in ((56, 88), (104, 64), (72, 80)):
        h, w = size.padded(height), size.padded(width)
        while (h, w) in seen or (h, w) in made or h == w:
            w += step
        made.append((h, w))
    return made


def agreement_db(want: Picture, got: Picture) -> float:
    """PSNR with the largest magnitude (1 at least) as the peak; -1 where a shape or a number is wrong."""
    if want.shape != got.shape or not np.isfinite(got).all():
        return -1.0
    error = float(np.mean((want.astype(np.float64) - got) ** 2))
    peak = max(1.0, float(np.abs(want).max()))
    return 999.0 if error == 0 else 10 * float(np.log10(peak**2 / error))


def compare(network: nn.Module, path: Path, backend: str, sizes: list[tuple[int, int]], channels: int) -> list[float]:
    """Decibels at each size, and for a batch of two at the first."""
    found = []
    with open_runner(path, backend, "cpu", threads=1) as runner, torch.no_grad():
        for number, (height, width) in enumerate(sizes):
            pictures = np.stack([picture(10 * number + n, channels, height, width) for n in range(BATCH)])
            want = np.concatenate([network(torch.from_numpy(one[None].copy())).numpy() for one in pictures])
            found.append(agreement_db(want[:1], runner.run({"image": pictures[:1]})["restored"]))
            if number == 0:
                try:
                    found.append(agreement_db(want, runner.run({"image": pictures})["restored"]))
                except Exception as error:
                    print(f"{backend}, batch of {BATCH}: {error}", flush=True)
                    found.append(-1.0)
    return [round(value, 1) for value in found]


def fp32(name: str, folder: Path, row: Row, size: int = 0) -> None:
    network, count = known(name, folder)
    planes = network.shape[1] + len(network.maps)
    row |= {"parameters": count, "architecture": network.architecture, "asked": size}
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.process_time()
        made = export_module(network.network, network.shape, path, size=size, maps=network.maps, progress=told)
        row["seconds"] = round(time.process_time() - began, 1)
    row |= {"scale": made.spec.scale, "channels": made.spec.channels, "tile": made.spec.tile_px,
            "halo": made.spec.halo_px, "multiple": made.spec.size.multiple_of, "minimum": made.spec.size.minimum,
            "static": made.spec.size.static_px, "maximum": made.spec.size.maximum, "statistics": made.spec.statistics,
            "notes": [*network.notes, *made.notes], "tiling": made.spec.tolerances.get("tiling")}  # fmt: skip
    sizes = untraced(made.spec.size, set(made.sizes)) if not made.spec.size.static_px else [tuple(made.sizes[0])]
    reference = as_one(known(name, folder)[0])  # one that has not run
    for backend in BACKENDS:
        row[backend] = compare(reference, path, backend, sizes, planes)
    row["sizes"] = sizes


def lower(name: str, folder: Path, row: Row, precision: str) -> None:
    """FP16 or INT8 of the files: agreement with the network, and what the built-in photos say."""
    config = PrecisionConfig((precision,), balance=BalanceConfig(size=16, pool=16, minimum=1), evaluation_crops=1,
                             timing_runs=1, backends=("ort",))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_precisions(folder, name, config, progress=told)
    network = known(name, folder)[0]
    path, planes = folder / f"{name}.{precision}.onnx", network.shape[1] + len(network.maps)
    row[f"{precision}_db"] = compare(as_one(network), path, "ort", row["sizes"][:1], planes)
    row[f"{precision}_bytes"] = path.stat().st_size


def with_cpp(name: str, folder: Path, row: Row, build: Path | None) -> None:
    """A photo in tiles, in C++."""
    if build is None:
        raise UsageError("column cpp needs --cpp, the build folder of the C++ library")
    row["cpp"] = agreement(folder / f"{name}.onnx", row["tile"], row["halo"], row.get("channels", 3), build)


def told(step: str) -> None:
    print(f"{time.process_time():6.1f} s  {step}", flush=True)


def column(name: str, folder: Path, what: str, build: Path | None = None, size: int = 0) -> None:
    """Make one column (``fp32``, ``fp16``, ``int8`` or ``cpp``) of a row and write ``folder/NAME.json``; ``size``: 0
    for any, else the one side in pixels that the file is asked to take."""
    at = folder / f"{name}.json"
    row: Row = json.loads(at.read_text()) if at.is_file() else {"name": name}
    began = time.process_time()
    try:
        if what == "fp32":
            fp32(name, folder, row, size)
        elif what == "cpp":
            with_cpp(name, folder, row, build)
        else:
            lower(name, folder, row, what)
    except ClusirError as error:
        row[f"{what}_refused"] = str(error)
    except Exception as error:
        traceback.print_exc()
        row[f"{what}_failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    row[f"{what}_seconds"] = round(time.process_time() - began, 1)
    row["done"] = [*row.get("done", []), what]
    at.write_text(json.dumps(row, indent=1) + "\n")


def warm_up() -> None:
    """Import all and trace something small, so that no row pays for what a process does once."""
    for name in ("spandrel_extra_arches", "onnxruntime", "onnxsim", "openvino", "skimage.data", "scipy.ndimage"):
        importlib.import_module(name)
    from clusir.export.trace.program import trace_module
    from clusir.export.trace.writer import write_program

    torch.set_num_threads(1)
    write_program(trace_module(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval(), torch.rand(1, 3, 24, 40)), "auto")
