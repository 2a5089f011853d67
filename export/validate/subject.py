"""Whether two files are of one subject: otherwise the first tensor in which they differ says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from clusir.errors import ModelFormatError, UsageError
from clusir.network.checkpoint import sha256
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec

__all__ = ["common_side", "refuse_other_subjects"]

_WHOLE = "the whole network"
_KINDS = {"whole": _WHOLE, "pooled": _WHOLE}  # both answer alone
_PARTS = (".router", ".tile", ".statistics")
_APART = 0.5  # of the weights of one name: where more have another shape, the networks have


@dataclass(frozen=True)
class _Subject:
    """What a file is of, "" where it does not say: the graph, and the network."""

    kind: str
    network: str


def refuse_other_subjects(a: Path, b: Path) -> None:
    """Raise UsageError where ``a`` (ONNX, or a checkpoint) and ``b`` (ONNX) are other graphs of a bundle, or of two
    networks, as far as their metadata and their weights tell; ModelFormatError where one is no model."""
    one, other = _subject(a), _subject(b)
    if one.kind and other.kind and one.kind != other.kind:
        whole = f"{next((b.stem.removesuffix(p) for p in _PARTS if b.stem.endswith(p)), 'model')}.onnx"
        advice = f"name {whole}" if one.kind == _WHOLE else "name two files of one graph"
        raise UsageError(
            f"--bisect: {a.name} is {one.kind} and {b.name} is {other.kind}, which compute other things; {advice}"
        )
    if one.network and other.network and one.network != other.network:
        raise UsageError(
            f"--bisect: {a.name} is of {one.network} and {b.name} of {other.network}: two networks differ from the "
            "first layer on; name files of one"
        )
    if a.suffix == ".onnx":
        _refuse_other_weights(a, b)


def common_side(a: Path, b: Path) -> int | None:
    """The side in pixels of a picture that both take, near the tile of ``b``; None where one of them says nothing of
    sizes. Raises UsageError where they take no size alike."""
    first, second = _spec(a), _spec(b)
    if second is None or (first is None and a.suffix == ".onnx"):
        return None
    side = second.size.padded(min(second.tile_px, 256))
    wanted = side if first is None else first.size.padded(side)
    if first is not None and second.size.padded(wanted) != wanted:
        raise UsageError(f"--bisect: {a.name} takes {first.size} and {b.name} {second.size}; name files for one size")
    return wanted


def _spec(path: Path) -> ModelSpec | None:
    """What a file says of itself; None where it was not written here."""
    if path.suffix != ".onnx":
        return None
    metadata = read_metadata(path)
    return ModelSpec.from_metadata(metadata) if "clusir.spec_version" in metadata else None


def _subject(path: Path) -> _Subject:
    if path.suffix == ".safetensors":
        return _Subject(_WHOLE, f"checkpoint {sha256(path)[:12]}")
    spec = _spec(path)
    if spec is None:
        return _Subject("", "")
    network = f"checkpoint {spec.checkpoint_sha256[:12]}" if spec.checkpoint_sha256 else "an untrained network"
    # The digest of a brought network says which files of one export belong together.
    return _Subject(_KINDS.get(spec.graph, f"a {spec.graph} graph"), network if spec.routed else "a brought network")


def _refuse_other_weights(a: Path, b: Path) -> None:
    one, other = _weights(a), _weights(b)
    shared = one.keys() & other.keys()
    apart = sorted(name for name in shared if one[name] != other[name])
    if len(apart) > _APART * len(shared):
        shapes = ["x".join(map(str, weights[apart[0]])) for weights in (one, other)]
        raise UsageError(
            f"--bisect: {apart[0]} is {shapes[0]} in {a.name} and {shapes[1]} in {b.name}, and so are {len(apart)} of "
            f"{len(shared)} weights: two networks; name files of one"
        )


def _weights(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what has two axes or more, by name."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base that is public
        raise ModelFormatError(f"model {path}: not an ONNX file ({error})") from error
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) > 1}
