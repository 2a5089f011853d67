"""transformers.js (npm ``@huggingface/transformers``): the folder that its image-to-image pipeline opens.

The pipeline rescales 8 bits to 0..1, feeds ``pixel_values`` and reads ``reconstruction``, which it clamps, multiplies
by 255 and rounds. It neither tiles nor crops what it has padded: padding and cropping are in the graph. Read in
``pipelines/image-to-image.js`` and ``image_processors_utils.js`` of 4.3.2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import ModelProto

from clusir import plain_json
from clusir.errors import ExportError
from clusir.export.formats.hosts.base import Array, HostForm, NotRunHere, OnnxHost, Source, need
from clusir.export.validate.tolerances import Tolerance

__all__ = ["TransformersJs"]

FOLDER_VARIABLE = "CLUSIR_TRANSFORMERS_JS"

# Raw 8-bit RGB in, the pipeline's own answer out. Run in the folder that holds node_modules, from which it imports.
_SCRIPT = """
import { env, pipeline, RawImage } from '@huggingface/transformers';
import { readFileSync, writeFileSync } from 'node:fs';
const [models, name, from, height, width, to] = process.argv.slice(-6);
env.allowRemoteModels = false;
env.localModelPath = models;
const restore = await pipeline('image-to-image', name, { device: 'cpu' });
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

    def requires(self) -> None:
        need("onnx", self.name)
        need("onnxruntime", self.name)

    def prepare(self, source: Source) -> Source:
        return source

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

    def check(self, folder: Path) -> None:
        """The pipeline itself is the only tool there is."""

    def run(self, folder: Path, image: Array) -> Array:
        """Through the npm package in Node, of the folder named in CLUSIR_TRANSFORMERS_JS (it holds node_modules)."""
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
            words = [str(folder.parent), folder.name, str(given), *map(str, pixels.shape[:2]), str(made)]
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
