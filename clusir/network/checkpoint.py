"""Checkpoints: safetensors with the model's configuration inside, strict keys, never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes

from clusir.atomic import whole_file
from clusir.errors import ModelFormatError, UsageError
from clusir.network.model import CONFIGS, ClusIR, ModelConfig

__all__ = ["load", "read_metadata", "resolve", "save", "sha256", "shipped"]

_EXPERT_GAIN = 3.0
_ATTENTION_GAIN = 5.0


def shipped(name: str = "tiny") -> Path:
    """Path of a checkpoint that comes with the package."""
    return Path(__file__).parents[1] / "weights" / f"{name}.safetensors"


def save(model: ClusIR, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``model`` to ``path`` (replaced atomically). ``metadata`` adds strings, for example the training
    command."""
    path = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = as_bytes(tensors, {**(metadata or {}), "config": json.dumps(model.config.to_dict())})
    with whole_file(path) as stream:
        stream.write(content)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata strings of a checkpoint. Raises UsageError (absent) or ModelFormatError (not safetensors)."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise UsageError(f"checkpoint {path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(f"checkpoint {path} is not a safetensors file ({error})") from error


def load(path: str | Path, device: str = "cpu") -> ClusIR:
    """Read a checkpoint into a model in eval mode. Raises ModelFormatError where keys or shapes do not fit its
    config."""
    metadata = read_metadata(path)
    if "config" not in metadata:
        raise ModelFormatError(f"checkpoint {path} holds no clusir config; it was not written by clusir-train")
    try:
        model = ClusIR(ModelConfig.from_dict(json.loads(metadata["config"])))
    except (ValueError, TypeError, KeyError, UsageError) as error:
        raise ModelFormatError(f"checkpoint {path} holds a config that does not fit ({error})") from error
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ModelFormatError(f"checkpoint {path} does not fit its config: {first}") from error
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise ModelFormatError(f"checkpoint {path} holds weights that are not finite")
    return model.to(device).eval()


def resolve(name_or_path: str | None, seed: int = 0) -> tuple[ClusIR, str]:
    """A model in eval mode and the sha256 of its weights' file.

    None is the shipped checkpoint; ``random:tiny|small|base`` an untrained model of that configuration whose
    zero-initialised layers are randomised too, so that every path carries signal (for tests and timing); anything
    else a path.
    """
    if name_or_path is None:
        path = shipped()
        return load(path), sha256(path)
    if name_or_path.startswith("random:"):
        name = name_or_path.removeprefix("random:")
        if name not in CONFIGS:
            raise UsageError(f"no configuration named {name!r}; there are {', '.join(CONFIGS)}")
        return random_model(CONFIGS[name], seed), ""
    return load(name_or_path), sha256(name_or_path)


def random_model(config: ModelConfig, seed: int = 0) -> ClusIR:
    """An untrained model in eval mode in which no layer is zero and every expert shows in the picture.

    Initial weights are small, so that training starts quietly: in a shallow ``small`` the experts differed by 1e-7 in
    the picture, as little as rounding does, so that no comparison would have noticed a missing one.
    """
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = ClusIR(config)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".experts." in name:
                    parameter.mul_(_EXPERT_GAIN)
                elif name.endswith(".temperature") or ".cross." in name:
                    parameter.mul_(_ATTENTION_GAIN)
                elif name in ("pilot.shrink", "pilot.give"):  # shares of energies: a negative one divides by nothing
                    parameter.abs_()
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cluster_labels(name_or_path: str | None) -> tuple[tuple[str, ...], ...]:
    """What each cluster of each level was named when the checkpoint was evaluated; empty where it was not."""
    if name_or_path is not None and name_or_path.startswith("random:"):
        return ()
    text = read_metadata(name_or_path or shipped()).get("cluster_labels", "[]")
    try:
        return tuple(tuple(str(label) for label in level) for level in json.loads(text))
    except (ValueError, TypeError) as error:
        raise ModelFormatError(f"checkpoint {name_or_path}: its cluster labels cannot be read ({error})") from error
