"""Golden cases: small pictures with the outputs that every runtime, in every language, has to give.

``python -m tests.golden.make.cases tests/golden`` writes them with Python's tiling and routing over ONNX Runtime;
Python, C++ and JavaScript check themselves against the files. A case is an entry of ``manifest.json``::

    name, model (path of the .onnx, relative to the folder), width, height, channels, type (u8 | u16 | f32),
    channels  1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
    input     little-endian samples, rows of interleaved pixels without gaps
    restored  float32 rows of the colours (1 or 3 channels), clipped to 0..1
    posterior, gate   the routing that the tiles shared
    fix, strength     what may be mended, and how far (docs/permissions.md), where they are not the default
    evidence          where the model has families
    tolerance         largest allowed difference of all of them (fp32)

After integers in, integers out may differ from the rounded ``restored`` by one level; alpha is kept, and scaled where
the type changes. ``refused`` names pictures whose restoration is an error: ``name``, ``model``, ``width``, ``height``
(RGB, 8 bit, all 0), perhaps ``fix`` and ``strength``, and ``says``, which is part of the message. ``enlarged`` are
cases of models without routing: ``scale``, ``width`` and ``height`` of the input, ``restored`` with all channels,
alpha among them, and perhaps ``maps``, each a number or ``input`` and ``type`` of a picture as large. ``tables/``
holds what needs no model.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import UsageError
from clusir.runtimes.restore.restorer import Restorer
from tests.golden.make.standin import write_enlarging, write_masked, write_numbered, write_standin

__all__ = ["GoldenCase", "colours", "golden_picture", "load_golden", "restore_with_python", "to_unit", "write_golden"]

FORMAT = 2
TOLERANCE = 1e-4  # the fp32 parity bar of the project
_TYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "u16": np.dtype("<u2"), "f32": np.dtype("<f4")}

# (model, image [H, W, 3] float32 in 0..1, fix, strength) -> restored [H, W, 3], posterior [P], gate [E], evidence [F]
Restored = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Restore = Callable[[Path, NDArray[np.float32], str | None, str], Restored]
# Thresholds and floors, some of which the evidence of the cases reaches.
FAMILIES = {"noise": (0.0, 0.0), "jpeg": (0.0, 0.5), "haze": (0.9, 0.1), "low_light": (0.5, 0.5)}
# fix and strength of the cases that have one
STEERED: dict[str, tuple[str | None, str]] = {
    "told_haze_u8": ("haze", "0.75"),
    "told_one_tile_f32": (None, "noise=0.5"),
    "told_all_alpha_u16": ("all", "0.5,haze=0.25"),
    "told_auto_u8": (None, "1"),
    "told_at_rest_u16": (None, "noise=0,jpeg=0,low-light=0"),
    "half_grey_alpha_u8": (None, "0.5"),
}


@dataclass(frozen=True)
class GoldenCase:
    """One case: ``pixels`` [H, W, C] as stored (uint8, uint16 or float32), its ``restored`` colours [H, W, 1 or 3]."""

    name: str
    model: Path
    pixels: NDArray[Any]
    restored: NDArray[np.float32]
    posterior: NDArray[np.float32]
    gate: NDArray[np.float32]
    tolerance: float
    fix: str | None = None
    strength: str = "1"
    evidence: NDArray[np.float32] | None = None

    @property
    def image(self) -> NDArray[np.float32]:
        """The colours, [H, W, 1 or 3] float32 in 0..1."""
        return to_unit(colours(self.pixels))


def colours(pixels: NDArray[Any]) -> NDArray[Any]:
    """``pixels`` [H, W, 1..4] without the alpha of 2 and 4 channels."""
    return pixels[..., : pixels.shape[2] - (pixels.shape[2] % 2 == 0)]


def to_unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Integer samples as float32 in 0..1 (a float32 division by 255 or 65535); float samples as they are."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def golden_picture(width: int, height: int, channels: int = 3, *, kind: str = "u8", seed: int = 0) -> NDArray[Any]:
    """A picture [H, W, channels] of slopes, edges, stripes and noise; nothing symmetric, so that a flip shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(channels):
        slope = (x * (c + 1) / 97 + y / (61 + 10 * c)) % 1.0
        stripes = 0.5 + 0.5 * np.sin((x * (0.2 + 0.05 * c) + y * 0.13) * (1 + x / 300))
        block = ((x // 17 + 2 * (y // 23) + c) % 3) / 2
        planes.append(0.4 * slope + 0.3 * stripes + 0.2 * block + rng.normal(0.05, 0.05, x.shape))
    unit = np.clip(np.stack(planes, axis=-1), 0, 1)
    if kind == "f32":
        return np.asarray(unit, dtype=np.float32)
    dtype = _TYPES[kind]
    return np.asarray(np.rint(unit * np.iinfo(dtype).max), dtype=dtype)


def _plan(
    standin: Path, standin_k2: Path, ranged: Path, told: Path, model: Path | None
) -> list[tuple[str, Path, NDArray[Any]]]:
    """What is tested: name, model, picture. The stand-in's tiles are 48 px with a halo of 8."""
    plan = [
        ("nine_tiles_u8", standin, golden_picture(100, 86)),
        ("sampled_routing_u8", standin, golden_picture(200, 49, seed=1)),
        ("alpha_u16", standin, golden_picture(61, 40, 4, kind="u16", seed=2)),
        ("exact_tile_f32", standin, golden_picture(48, 48, kind="f32", seed=3)),
        ("one_pixel_f32", standin, golden_picture(1, 1, kind="f32", seed=4)),
        ("narrow_u8", standin, golden_picture(3, 70, seed=5)),
        ("two_experts_alpha_u8", standin_k2, golden_picture(50, 97, 4, seed=6)),
        ("range_alpha_u8", ranged, golden_picture(100, 60, 4, seed=9)),
        ("range_one_tile_f32", ranged, golden_picture(30, 48, kind="f32", seed=10)),
        ("grey_u8", standin, golden_picture(70, 55, 1, seed=11)),
        ("grey_alpha_u16", standin_k2, golden_picture(40, 60, 2, kind="u16", seed=12)),
        ("float_alpha_f32", standin, golden_picture(20, 50, 4, kind="f32", seed=13)),
        ("told_haze_u8", told, golden_picture(70, 60, seed=14)),
        ("told_one_tile_f32", told, golden_picture(40, 30, kind="f32", seed=15)),
        ("told_all_alpha_u16", told, golden_picture(60, 50, 4, kind="u16", seed=16)),
        ("told_auto_u8", told, golden_picture(60, 40, seed=17)),
        ("told_at_rest_u16", told, golden_picture(70, 60, kind="u16", seed=19)),
        ("half_grey_alpha_u8", ranged, golden_picture(60, 40, 2, seed=18)),
    ]
    if model is not None:
        plan += [
            ("named_u8", model, golden_picture(90, 70, seed=7)),
            ("named_tiles_u8", model, golden_picture(300, 26, seed=8)),
        ]
    return plan


def write_golden(folder: Path, restore: Restore, named: Path | None = None) -> list[str]:
    """Writes the stand-in models, the pictures, what ``restore`` makes of them, and the manifest; returns the names.

    ``named``: one more model, whose cases are as large as its tiles demand (kept out of the repository's folder: they
    would go stale with every training).
    """
    for part in ("in", "out"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    standin = write_standin(folder, "standin")
    # Two experts a level, and without pooled statistics.
    standin_k2 = write_standin(folder, "standin_k2", top_k=2, statistics=False)
    ranged = write_standin(folder, "standin_range", value_range=(-1.0, 3.0), names=("pixels", "better"))
    spoilt = write_standin(folder, "standin_nan", spoilt="restored")
    told = write_standin(folder, "standin_told", families=FAMILIES)
    cases = []
    for name, model, pixels in _plan(standin, standin_k2, ranged, told, named):
        fix, strength = STEERED.get(name, (None, "1"))
        restored, posterior, gate, evidence = restore(model, to_unit(colours(pixels)), fix, strength)
        steered = {key: said for key, said in (("fix", fix), ("strength", strength)) if name in STEERED and said}
        if len(evidence):
            steered["evidence"] = [float(value) for value in evidence]
        (folder / "in" / f"{name}.bin").write_bytes(np.ascontiguousarray(pixels).tobytes())
        (folder / "out" / f"{name}.bin").write_bytes(np.ascontiguousarray(restored, "<f4").tobytes())
        cases.append(
            {
                "name": name,
                "model": Path(os.path.relpath(model, folder)).as_posix(),
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "channels": pixels.shape[2],
                "type": _type_of(pixels),
                "input": f"in/{name}.bin",
                "restored": f"out/{name}.bin",
                "posterior": [float(value) for value in posterior],
                "gate": [float(value) for value in gate],
                "tolerance": TOLERANCE,
                **steered,
            }
        )
    refused: list[dict[str, Any]] = [
        {"name": f"nan_{side}", "model": spoilt.name, "width": side, "height": 40, "says": "NaN"} for side in (40, 100)
    ]
    for name, model, fix, strength, says in (
        ("untold_fix", standin, "noise", "1", "permissions"),
        ("untold_family_strength", standin, None, "noise=0.5", "permissions"),
        ("told_unknown", told, "fog", "1", "fog"),
        ("told_too_strong", told, None, "1.5", "0 to 1"),
    ):
        entry = {"name": name, "model": model.name, "width": 20, "height": 20, "says": says, "strength": strength}
        refused.append(entry | ({"fix": fix} if fix else {}))
    enlarged = _write_enlarged(folder)
    manifest = {"format": FORMAT, "cases": cases, "enlarged": enlarged, "refused": refused}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return [str(case["name"]) for case in cases]


def _write_enlarged(folder: Path) -> list[dict[str, Any]]:
    """Cases of a model that enlarges twice, alpha among the channels of what is restored, of one with maps, of one
    that takes RGBA, and of one with numbers that pools over the picture."""
    large, masked = write_enlarging(folder, "standin_x2"), write_masked(folder, "standin_masked")
    numbered = write_numbered(folder, "standin_numbered")
    rgba = write_masked(folder, "standin_rgba", "alpha", 1.0)
    entries = []
    mask = np.asarray(golden_picture(101, 70, 1, seed=24) > 110, np.uint8) * 255
    plan: tuple[tuple[str, Path, NDArray[Any], dict[str, Any]], ...] = (
        ("x2_alpha_u8", large, golden_picture(50, 34, 4, seed=14), {}),
        ("x2_grey_alpha_u16", large, golden_picture(52, 20, 2, kind="u16", seed=15), {}),
        ("x2_rgb_u8", large, golden_picture(20, 60, seed=16), {}),
        ("masked_u8", masked, golden_picture(101, 70, seed=21), {"mask": mask}),
        ("masked_alpha_u16", masked, golden_picture(60, 30, 4, kind="u16", seed=22),
         {"mask": golden_picture(60, 30, 4, kind="u16", seed=25),
          "level": golden_picture(60, 30, 3, kind="f32", seed=26)}),
        ("masked_grey_u8", masked, golden_picture(40, 75, 1, seed=23), {"mask": 0.75, "level": 0.5}),
        ("unmasked_u8", masked, golden_picture(30, 20, seed=27), {}),
        ("own_alpha_u8", rgba, golden_picture(101, 70, 4, seed=31), {}),
        ("own_alpha_u16", rgba, golden_picture(60, 30, 2, kind="u16", seed=32), {}),
        ("opaque_u8", rgba, golden_picture(40, 75, seed=33), {}),
        ("another_alpha_u16", rgba, golden_picture(30, 40, 4, kind="u16", seed=34), {"alpha": 0.25}),
        ("numbered_u8", numbered, golden_picture(70, 101, seed=28), {}),
        ("numbered_set_u8", numbered, golden_picture(70, 101, seed=28), {"sigma": 60, "quality": -1.5}),
        ("numbered_tile_u16", numbered, golden_picture(40, 30, 4, kind="u16", seed=29), {"sigma": 0.25}),
    )  # fmt: skip
    for name, model, pixels, maps in plan:
        with Restorer(model, backend="ort", device="cpu", threads=2, settings=maps) as restorer:
            restored = restorer.restore(to_unit(pixels))
        told, numbers = {}, {}
        for key, given in maps.items():
            if key in ("sigma", "quality"):
                numbers[key] = given
                continue
            told[key] = given
            if isinstance(given, np.ndarray):
                told[key] = {"input": f"in/{name}.{key}.bin", "type": _type_of(given)}
                (folder / "in" / f"{name}.{key}.bin").write_bytes(np.ascontiguousarray(given).tobytes())
        (folder / "in" / f"{name}.bin").write_bytes(np.ascontiguousarray(pixels).tobytes())
        (folder / "out" / f"{name}.bin").write_bytes(np.ascontiguousarray(restored, "<f4").tobytes())
        kind = _type_of(pixels)
        size = {"width": pixels.shape[1], "height": pixels.shape[0], "channels": pixels.shape[2], "type": kind}
        files = {"input": f"in/{name}.bin", "restored": f"out/{name}.bin", **({"maps": told} if told else {})}
        files |= {"numbers": numbers} if numbers else {}
        scale = 2 if model == large else 1
        entries.append({"name": name, "model": model.name, **size, "scale": scale, **files, "tolerance": TOLERANCE})
    return entries


def _type_of(pixels: NDArray[Any]) -> str:
    return next(key for key, dtype in _TYPES.items() if dtype == pixels.dtype)


def load_golden(folder: Path) -> list[GoldenCase]:
    """The cases of a folder. Raises UsageError where it holds none or another format."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{path} is not there; write the cases with: python -m tests.golden.make.cases {folder}")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise UsageError(f"{path}: format {manifest.get('format')!r} is not {FORMAT}; write the cases again")
    cases = []
    for entry in manifest["cases"]:
        shape = (entry["height"], entry["width"], entry["channels"])
        pixels = np.frombuffer((folder / entry["input"]).read_bytes(), _TYPES[entry["type"]]).reshape(shape)
        restored = np.frombuffer((folder / entry["restored"]).read_bytes(), "<f4").reshape(
            (*shape[:2], 3 if shape[2] > 2 else 1)
        )
        posterior, gate = (np.array(entry[key], np.float32) for key in ("posterior", "gate"))
        model = (folder / entry["model"]).resolve()
        steered = {
            "fix": entry.get("fix"),
            "strength": entry.get("strength", "1"),
            "evidence": np.array(entry.get("evidence", []), np.float32),
        }
        case = GoldenCase(entry["name"], model, pixels, restored, posterior, gate, entry["tolerance"], **steered)
        cases.append(case)
    return cases


def restore_with_python(
    model: Path, image: NDArray[np.float32], fix: str | None = None, strength: str = "1"
) -> Restored:
    """What :class:`clusir.runtimes.restore.restorer.Restorer` makes of a picture over ONNX Runtime on the CPU."""
    with Restorer(model, backend="ort", device="cpu", fix=fix, strength=strength) as restorer:
        restored, work = restorer.restore_and_tell(image)
    if work.routing is None:
        raise UsageError(f"{model} has no routing; golden cases are of routed models")
    return restored, work.routing.posterior, work.routing.gate, work.routing.evidence


def main(arguments: list[str]) -> int:
    """``python -m tests.golden.make.cases FOLDER [MODEL.onnx]``: writes the cases, with two more for MODEL."""
    if len(arguments) not in (1, 2):
        print("usage: python -m tests.golden.make.cases FOLDER [MODEL.onnx]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    names = write_golden(folder, restore_with_python, Path(arguments[1]) if arguments[1:] else None)
    print(f"{len(names)} golden cases in {folder}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
