"""transformers.js (npm ``@huggingface/transformers``): the folder that its image-to-image pipeline opens.

The pipeline rescales 8 bits to 0..1, feeds ``pixel_values`` and reads ``reconstruction``, which it clamps, multiplies
by 255 and rounds. It neither tiles nor crops what it has padded: padding and cropping are in the graph. Its option
``dtype`` chooses the file; all of them are given float32. Read in ``pipelines/image-to-image.js``,
``image_processors_utils.js``, ``models/session.js`` and ``utils/dtypes.js`` of 4.3.2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import ModelProto

from clusir import plain_json
from clusir.errors import BudgetError, CalibrationError, ExportError
from clusir.export.formats.hosts.base import Array, Further, HostForm, NotRunHere, OnnxHost, Source
from clusir.export.formats.hosts.child import trial_pictures
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.integers import Integers
from clusir.export.graph.session import Probe
from clusir.export.quantize.float16 import convert_fp16
from clusir.export.validate.compare import Agreement, check, compare
from clusir.export.validate.tolerances import TOLERANCES, Tolerance

__all__ = ["TransformersJs"]

FOLDER_VARIABLE = "CLUSIR_TRANSFORMERS_JS"
# The names that dtype 'fp16' and 'q8' stand for.
_HALF, _EIGHT = Path("onnx", "model_fp16.onnx"), Path("onnx", "model_quantized.onnx")
_DTYPES = {"float16": "fp16", "int8": "q8"}
_HALF_BOUND = replace(TOLERANCES["fp16"], relative=True)  # answers may be of any magnitude
_EIGHT_BOUND = replace(TOLERANCES["int8"], relative=True)
_SHOWN_PX = 256

# Raw 8-bit RGB in, the pipeline's own answer out. Run in the folder that holds node_modules, from which it imports.
_SCRIPT = """
import { env, pipeline, RawImage } from '@huggingface/transformers';
import { readFileSync, writeFileSync } from 'node:fs';
const [models, name, dtype, from, height, width, to] = process.argv.slice(-7);
env.allowRemoteModels = false;
env.localModelPath = models;
const restore = await pipeline('image-to-image', name, { device: 'cpu', ...(dtype && { dtype }) });
const out = await restore(new RawImage(new Uint8ClampedArray(readFileSync(from)), +width, +height, 3));
writeFileSync(to, out.data);
console.log(JSON.stringify([out.height, out.width, out.channels]));
"""


class TransformersJs(OnnxHost):
    """The folder of a model for ``pipeline('image-to-image', ...)``."""

    name: ClassVar[str] = "transformers.js"
    # Pictures come out in 8 bits: a value that lies on the edge of two may fall either way.
    bound: ClassVar[Tolerance] = Tolerance(max_abs=1.001 / 255, psnr_db=60.0, gates_equal=True)
    beyond: ClassVar[bool] = False
    channels: ClassVar[tuple[int, ...]] = (3,)
    levels: ClassVar[bool] = True
    no_int8: ClassVar[str] = ""

    def form(self, source: Source) -> HostForm:
        return HostForm("pixel_values", "reconstruction", batch="batch_size", any_size=True)

    def lint(self, source: Source) -> list[str]:
        if static := source.spec.size.static_px:
            return [
                f"the pipeline gives pictures of any size and the graph takes {static} px only; "
                "export it with --dynamic first, and give that file with --from"
            ]
        return []

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        (folder / "onnx").mkdir(parents=True)
        onnx.save(model, str(self.model(folder)))
        half = _in_float16(source)
        if half is not None:
            self._save(replace(source, model=half), folder / _HALF)
        config = {
            # The only type that the pipeline maps to a class; nothing of Swin2SR is in the graph.
            "model_type": "swin2sr",
            "architectures": ["Swin2SRForImageSuperResolution"],
            "upscale": source.spec.scale,
            # Without it a browser asks for model_quantized.onnx.
            "transformers.js_config": {"dtype": "fp32"},
        }
        processor = {
            "image_processor_type": "Swin2SRImageProcessor",
            "do_convert_rgb": True,
            "do_resize": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": False,
            "do_pad": False,
        }
        for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
            (folder / name).write_text(plain_json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def model(self, folder: Path) -> Path:
        return folder / "onnx" / "model.onnx"

    def _save(self, source: Source, path: Path) -> None:
        onnx.save(self._host_form(source), str(path))

    def _host_form(self, source: Source) -> ModelProto:
        model = host_form(source, self.form(source))
        # As of the float32 file: it would describe the graph as it was.
        del model.metadata_props[:]
        model.producer_name = "clusir"
        return model

    def further(self, folder: Path) -> list[Further]:
        half, eight = folder / _HALF, folder / _EIGHT
        lost = f"{half.name} is left out: the graph has branches, or is less than 60 dB from float32 in float16"
        there = half.is_file()
        found = [Further("float16", half if there else None, _HALF_BOUND, "" if there else lost)]
        return [*found, *([Further("int8", eight, _EIGHT_BOUND)] if eight.is_file() else [])]

    def add_int8(self, model: ModelProto, folder: Path, drawn: Integers, bars: tuple[float, float]) -> str:
        def answers(rounded: ModelProto | None) -> list[Array]:
            tried = model if rounded is None else self._host_form(replace(drawn.source, model=rounded))
            if rounded is not None:
                onnx.save(tried, str(folder / _EIGHT))
            probe = Probe(tried, threads=1)
            return [probe.run({"pixel_values": sample.image})["reconstruction"] for sample in drawn.samples]

        return drawn.first_within(self.name, drawn.quantizer_of_source(), answers, bars)

    def more(self, folder: Path, image: Array, expected: Array) -> list[tuple[str, Agreement | None, str]]:
        """The files of other precisions in the pipeline, held against what ONNX Runtime makes of the same files: what
        they lose against float32 was asked there."""
        found: list[tuple[str, Agreement | None, str]] = []
        for one in self.further(folder):
            if one.path is None:
                found.append((one.precision, None, one.absent))
                continue
            probe = Probe(onnx.load(str(one.path)), threads=1)
            right = probe.run({probe.inputs[0]: image})[probe.outputs[0]]
            wanted = (np.rint(right.clip(0, 1) * 255) / 255).astype(np.float32)
            seen = self.run(folder, image, _DTYPES[one.precision])
            agreement = compare({"restored": wanted}, {"restored": seen}, self.bound)
            found.append((one.precision, check(agreement, f"{self.name}, {one.precision}"), ""))
        return found

    def run(self, folder: Path, image: Array, dtype: str = "") -> Array:
        """Through the npm package in Node, of the folder named in CLUSIR_TRANSFORMERS_JS (it holds node_modules).
        ``dtype``: the pipeline's option; empty: not given."""
        home = os.environ.get(FOLDER_VARIABLE, "")
        node = shutil.which("node")
        if node is None:
            raise NotRunHere("node is not installed")
        if not home or not (Path(home) / "node_modules" / "@huggingface" / "transformers").is_dir():
            raise NotRunHere(
                f"no @huggingface/transformers; npm install it, and name the folder of its node_modules in "
                f"{FOLDER_VARIABLE}"
            )
        pixels = np.rint(image[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        folder = folder.resolve()
        with tempfile.TemporaryDirectory() as work:
            given, made = Path(work) / "in.rgb", Path(work) / "out.rgb"
            given.write_bytes(pixels.tobytes())
            words = [str(folder.parent), folder.name, dtype, str(given), *map(str, pixels.shape[:2]), str(made)]
            done = subprocess.run(
                [node, "--input-type=module", "-e", _SCRIPT, "--", *words],
                cwd=home, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if "Error" in line] or [done.stderr.strip()[-200:]]
                raise ExportError(f"transformers.js refuses {folder}: {said[0].strip()}")
            shape = [int(n) for n in done.stdout.strip().splitlines()[-1].strip("[]").split(",")]
            answer = np.frombuffer(made.read_bytes(), np.uint8).reshape(shape)
        return np.ascontiguousarray(answer.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _in_float16(source: Source) -> ModelProto | None:
    """The graph with weights and most arithmetic in float16, float32 in and out; None where that loses too much
    or has no form."""
    spec = source.spec
    low, high = spec.value_range
    shown = trial_pictures(spec.size.padded(_SHOWN_PX), spec.channels)[:2]
    feeds = [{spec.input_name: (picture * (high - low) + low).astype(np.float32)} for picture in shown]
    with tempfile.TemporaryDirectory() as scratch:
        whole, half = Path(scratch) / "model.onnx", Path(scratch) / "half.onnx"
        onnx.save(source.model, str(whole))
        try:
            convert_fp16(whole, half, feeds)
        except (BudgetError, CalibrationError, ExportError):
            return None
        return onnx.load(str(half))
