"""Words that several rooms must spell alike: backends, devices, precisions, tensors, install commands."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = [
    "AUTO", "BACKENDS", "BFLOAT16", "DEVICES", "HOSTS", "INPUTS", "INSTALL_GPU", "MODULES", "ONNX_BACKENDS", "OUTPUTS",
    "PRECISIONS", "install_line", "installed_backends",
]  # fmt: skip

# The Python module behind each backend, in the order in which they are tried.
MODULES = {"ort": "onnxruntime", "openvino": "openvino", "torch": "torch"}
BACKENDS = ("auto", *MODULES)
ONNX_BACKENDS = ("ort", "openvino")
DEVICES = ("auto", "cpu", "cuda", "webgpu")
PRECISIONS = ("fp32", "fp16", "int8")  # of files
# Programs that open models: clusir-export --target.
HOSTS = (
    "coreml", "darktable", "executorch", "ffmpeg", "litert", "mnn", "ncnn", "opencv", "transformers.js", "triton",
    "vs-mlrt",
)  # fmt: skip
BFLOAT16 = "bf16"  # how a float32 file may be computed
AUTO = "auto"  # the fastest precision here that loses little

# Tensors of an exported graph; a graph has some of them. A brought model may call the picture and the result otherwise
# (ModelSpec.input_name, output_name).
INPUTS = ("image", "posterior", "gate", "statistics", "permissions")
OUTPUTS = ("restored", "posterior", "gate", "expert_probability", "statistics", "evidence")

# Which extra of this package brings a module.
_EXTRAS = {
    "torch": "export", "safetensors": "export", "onnx": "export", "onnxscript": "export", "onnxsim": "export",
    "skimage": "export", "nncf": "export", "onnxruntime": "cpu", "openvino": "openvino", "ray": "ray",
    "executorch": "executorch", "onnxruntime_ep_webgpu": "webgpu",
    "bm3d": "peers", "cv2": "peers", "pyoidn": "peers",
}  # fmt: skip

INSTALL_GPU = 'pip uninstall -y onnxruntime && pip install "clusir[gpu]"'  # both at once break each other


def install_line(module: str) -> str:
    """The command that installs ``module``, for example ``torch``; empty where no extra brings it."""
    extra = _EXTRAS.get(module.split(".")[0], "")
    return extra and f'pip install "clusir[{extra}]"'  # in double quotes, which every shell understands


def installed_backends(among: tuple[str, ...] = tuple(MODULES)) -> list[str]:
    """Those backends whose module is installed. Nothing is imported."""
    return [backend for backend in among if find_spec(MODULES[backend]) is not None]
