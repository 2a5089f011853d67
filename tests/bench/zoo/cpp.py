"""What C++ makes of a row's file: a photo in tiles, against what Python makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clusir.calibration.planes import maps_for
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec
from tests.golden.make.cases import FORMAT, TOLERANCE, golden_picture, to_unit

__all__ = ["agreement"]

_MORE_PX = 44  # than a tile: a photo is cut into two in one direction and three in the other
_BACKENDS = ("ort", "openvino")


def agreement(model: Path, tile: int, halo: int, channels: int, build: Path) -> str:
    """``agrees``, or what ``clusir-golden`` of a ``build`` folder of the C++ library says instead, on both runtimes."""
    height, width = tile + _MORE_PX, 2 * (tile - 2 * halo) + _MORE_PX
    pixels = golden_picture(width, height, channels, kind="u8", seed=11)
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    with tempfile.TemporaryDirectory(prefix="clusir-zoo-") as name:
        folder = Path(name)
        for path in model.parent.glob(f"{model.stem}*.onnx"):
            (folder / path.name).symlink_to(path.resolve())
        maps = dict(
            zip(ModelSpec.from_metadata(read_metadata(model)).maps, maps_for(4, height, width, 11), strict=False)
        )
        with Restorer(model, backend="ort", device="cpu", threads=1, settings=maps) as restorer:
            scale, made = restorer.spec.scale, restorer.restore(to_unit(pixels))
        (folder / "in.bin").write_bytes(np.ascontiguousarray(pixels).tobytes())
        (folder / "out.bin").write_bytes(np.ascontiguousarray(made, "<f4").tobytes())
        case: dict[str, Any] = {"name": model.stem, "model": model.name, "width": width, "height": height,
                                "channels": channels, "type": "u8", "input": "in.bin", "restored": "out.bin",
                                "tolerance": TOLERANCE}  # fmt: skip
        plain = {**case, "posterior": [], "gate": []}
        if maps:
            case["maps"] = {name: {"input": f"{name}.bin", "type": "f32"} for name in maps}
            for name, plane in maps.items():
                (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(plane, "<f4").tobytes())
        kinds = (
            {"cases": [plain], "enlarged": []}
            if scale == 1 and not maps
            else {"cases": [], "enlarged": [case | {"scale": scale}]}
        )
        (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, **kinds, "refused": []}))
        for backend in _BACKENDS:
            done = subprocess.run([build / "clusir-golden", folder, backend, library], capture_output=True, text=True)
            last = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
            if done.returncode or not last.endswith(" passed, 0 failed"):
                print(done.stdout, done.stderr, file=sys.stderr)
                return f"{backend}: {last}"
    return "agrees"
