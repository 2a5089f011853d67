"""The record of a draw: small JSON from which the very same pixels are drawn again, or a refusal if they changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusir.calibration.base import CalibrationSource, Sample
from clusir.errors import CalibrationError

__all__ = ["Manifest", "replay", "write_manifest"]

_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """``source``: the source's description; ``samples``: (index, key, SHA-256 of the pixels) of each crop."""

    source: dict[str, Any]
    samples: tuple[tuple[int, str, str], ...]

    @classmethod
    def of(cls, source: CalibrationSource, samples: Sequence[Sample]) -> Manifest:
        return cls(source.describe(), tuple((s.index, s.key, s.sha256) for s in samples))

    @property
    def sha256(self) -> str:
        """Identity of the calibration set: equal for equal photos, settings and crops, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"format": _FORMAT, "source": self.source, "samples": [list(sample) for sample in self.samples]}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises CalibrationError where the file is not a manifest."""
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']} is not {_FORMAT}")
            samples = tuple((int(i), str(key), str(digest)) for i, key, digest in data["samples"])
            return cls(dict(data["source"]), samples)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(
                f"{path} is not a calibration manifest ({error}); export again without it"
            ) from error


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write ``manifest`` as JSON with its own hash beside it, for people to compare."""
    path.write_text(json.dumps({**manifest.to_json(), "sha256": manifest.sha256}, indent=1) + "\n", "utf-8")


def replay(manifest: Manifest, source: CalibrationSource) -> tuple[Sample, ...]:
    """The crops of ``manifest`` out of ``source``.

    Raises CalibrationError where the source is another one (photos, seed, crop size) or a crop has other pixels.
    """
    described = json.loads(json.dumps(source.describe()))
    for field in sorted(described.keys() | manifest.source.keys()):
        if described.get(field) != manifest.source.get(field):
            raise CalibrationError(
                f"the calibration source differs from the manifest's in {field!r}; give the same photos and settings, "
                "or export without the manifest"
            )
    samples = []
    for index, key, digest in manifest.samples:
        sample = source.sample(index)
        if sample.sha256 != digest:
            raise CalibrationError(
                f"calibration crop {key} has other pixels than the manifest says; the degradations or the picture "
                "decoder changed: export again without the manifest"
            )
        samples.append(sample)
    return tuple(samples)
