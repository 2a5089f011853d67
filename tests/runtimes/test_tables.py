"""The tables that C++ and JavaScript answer too: specs, gates, rounding, tiles; and the schema of a spec."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import clusir.spec
from clusir.errors import ClusirError, ImageError, ModelFormatError, UsageError
from clusir.runtimes.restore.canvas import Canvas
from clusir.runtimes.restore.permissions import hints, nothing_to_mend, steer
from clusir.runtimes.restore.pixels import from_model, to_model
from clusir.runtimes.restore.routing import top_k_gate
from clusir.runtimes.restore.sources import ArraySource
from clusir.runtimes.restore.tiling import pad_tile, plan_axis, plan_picture
from clusir.spec import ModelSpec, SizeRequirements

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "tests" / "golden" / "tables"
SCHEMA = json.loads((Path(clusir.spec.__file__).parent / "spec.schema.json").read_text(encoding="utf-8"))
KINDS = {"u8": np.dtype(np.uint8), "u16": np.dtype(np.uint16), "f32": np.dtype(np.float32)}


def table(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return read


def named(entry: Any) -> str:
    return entry.get("name", "") if isinstance(entry, dict) else str(entry)


def metadata_of(entry: dict[str, Any]) -> dict[str, str]:
    return {f"clusir.{key}": text for key, text in entry["metadata"].items()}


@pytest.mark.parametrize("entry", table("specs")["good"], ids=named)
def test_good_specs(entry: dict[str, Any]) -> None:
    spec = ModelSpec.from_metadata(metadata_of(entry))
    read = json.loads(json.dumps(asdict(spec)))
    assert {key: read[key] for key in entry["reads"]} == entry["reads"]
    assert ModelSpec.from_metadata(spec.to_metadata()) == spec
    jsonschema.validate(read, SCHEMA)


@pytest.mark.parametrize("entry", table("specs")["bad"], ids=named)
def test_bad_specs(entry: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatError) as refused:
        ModelSpec.from_metadata(metadata_of(entry))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_the_schema_is_that_of_the_dataclass() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for kind, schema in ((ModelSpec, SCHEMA), (SizeRequirements, SCHEMA["properties"]["size"])):
        described = schema["properties"]
        assert list(described) == [f.name for f in fields(kind)]
        for f in fields(kind):
            default = f.default if f.default is not MISSING else f.default_factory()  # type: ignore[misc]
            plain = asdict(default) if f.name == "size" else json.loads(json.dumps(default))
            assert described[f.name].get("default", described[f.name].get("const")) == plain, f.name


def test_the_schema_refuses_what_no_reader_takes() -> None:
    """All bad specs but those that are no JSON, and those whose fields only contradict each other."""
    across = re.compile(
        "core|halo over|beside|below|no multiple|levels|alone|over a level|cluster_labels too|labels with"
    )
    check = jsonschema.Draft202012Validator(SCHEMA)
    tried = 0
    for entry in table("specs")["bad"]:
        try:
            plain = {key: json.loads(text, parse_constant=float) for key, text in entry["metadata"].items()}
        except ValueError:
            continue
        odd = "NaN" in str(entry) or "Infinity" in str(entry) or "1e400" in str(entry) or "ud800" in str(entry)
        if odd or across.search(entry["name"]) or entry["name"].startswith("value_range"):
            continue
        tried += 1
        assert not check.is_valid(plain), entry["name"]
    assert tried > 150


@pytest.mark.parametrize("entry", table("gates")["cases"], ids=named)
def test_gates(entry: dict[str, Any]) -> None:
    probability = np.array([float(value) for value in entry["probability"]], np.float32)
    if entry["gate"] is None:
        with pytest.raises(ClusirError, match="router"):
            top_k_gate(probability, entry["k"])
        return
    gate = top_k_gate(probability, entry["k"])
    assert gate.dtype == np.float32
    np.testing.assert_allclose(gate, entry["gate"], atol=1e-6)
    np.testing.assert_array_equal(gate > 0, np.array(entry["gate"]) > 0)


@pytest.mark.parametrize("entry", table("pixels")["written"], ids=lambda entry: f"{entry['type']} {entry['name']}")
def test_written_samples(entry: dict[str, Any]) -> None:
    value = np.full((1, 1, 3), float(entry["value"]), np.float32)
    value_range, dtype = (entry["low"], entry["high"]), KINDS[entry["type"]]
    if entry["gives"] is None:
        with pytest.raises(ClusirError, match="NaN or infinity"):
            from_model(value, value_range, dtype)
        return
    written = from_model(value, value_range, dtype)
    assert written.dtype == dtype
    assert (written == dtype.type(entry["gives"])).all()


def test_the_halves_of_the_table_are_halves() -> None:
    rows = [row for row in table("pixels")["written"] if "is rounded to the even" in row["name"]]
    assert len(rows) >= 20
    for row in rows:
        scaled = np.float32(row["value"]) * np.float32(np.iinfo(KINDS[row["type"]]).max)
        assert Fraction(float(scaled)).denominator == 2
        assert row["gives"] % 2 == 0


@pytest.mark.parametrize(
    "entry", table("pixels")["read"], ids=lambda entry: "{type} {sample} {low}..{high}".format(**entry)
)
def test_read_samples(entry: dict[str, Any]) -> None:
    sample = np.full((1, 1, 3), float(entry["sample"])).astype(KINDS[entry["type"]])
    if entry["gives"] is None:
        with pytest.raises(ImageError):
            to_model(sample, (entry["low"], entry["high"]))
        return
    np.testing.assert_allclose(to_model(sample, (entry["low"], entry["high"])), entry["gives"], rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("entry", table("plans")["cases"], ids=lambda entry: f"{entry['length']} by {entry['tile_px']}")
def test_plans(entry: dict[str, Any]) -> None:
    rule = {"multiple_of": 16, "minimum": 16, "static_px": 0, "maximum": 0}
    size = SizeRequirements(**{key: entry.get(key, usual) for key, usual in rule.items()})
    axis = plan_axis(entry["length"], ModelSpec(tile_px=entry["tile_px"], halo_px=entry["halo_px"], size=size))
    assert axis.tile == entry["tile"]
    assert list(axis.sample()) == entry["sample"]
    if "starts" in entry:
        assert list(axis.starts) == entry["starts"]
    else:
        assert (len(axis.starts), axis.starts[-1]) == (entry["count"], entry["last"])
    if "weights" in entry:
        np.testing.assert_array_equal(np.stack(axis.weights), np.array(entry["weights"], np.float32))


def test_reflection() -> None:
    for position, length, pixel in table("plans")["reflect"]:
        column = np.arange(length, dtype=np.float32)[:, None, None]
        assert pad_tile(column, max(position + 1, length), 1)[position, 0, 0] == pixel


def with_families(families: list[str], entry: dict[str, Any]) -> ModelSpec:
    thresholds = tuple(entry.get("thresholds", [0.0] * len(families)))
    floors = tuple(entry.get("floors", ()))
    return ModelSpec(families=tuple(families), evidence_thresholds=thresholds, evidence_floors=floors)


@pytest.mark.parametrize("entry", table("steering")["good"], ids=named)
def test_good_steering(entry: dict[str, Any]) -> None:
    steering = steer(with_families(entry["families"], entry), entry["fix"], entry["strength"])
    np.testing.assert_array_equal(steering.permissions, np.array(entry["permissions"], np.float32))
    assert steering.blend == entry["blend"]


@pytest.mark.parametrize("entry", table("steering")["bad"], ids=named)
def test_bad_steering(entry: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        steer(with_families(entry["families"], entry), entry["fix"], entry["strength"])


@pytest.mark.parametrize("entry", table("steering")["blends"], ids=str)
def test_blends(entry: dict[str, float]) -> None:
    before = np.full((1, 1, 3), entry["before"], np.float32)
    restored = np.full((1, 1, 1, 3), entry["restored"], np.float32)
    spec = ModelSpec(size=SizeRequirements(1, 1), tile_px=1, halo_px=0)
    source = ArraySource(before)
    canvas = Canvas(source, plan_picture(1, 1, spec), lambda tiles, layer: restored, spec)
    np.testing.assert_allclose(next(canvas.bands(entry["strength"])), entry["gives"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("entry", table("steering")["hints"], ids=str)
def test_hints(entry: dict[str, list[Any]]) -> None:
    spec = with_families(entry.get("families", ["noise", "jpeg", "haze", "low_light"]), entry)
    evidence, permissions = (np.array(entry[key], np.float32) for key in ("evidence", "permissions"))
    found = [line.rpartition("--fix ")[2].replace("-", "_") for line in hints(evidence, permissions, spec)]
    assert found == entry["left"]


@pytest.mark.parametrize("entry", table("steering")["rest"], ids=str)
def test_rest(entry: dict[str, Any]) -> None:
    spec = with_families(["noise", "jpeg", "haze", "low_light"], entry)
    evidence, permissions = (np.array(entry[key], np.float32) for key in ("evidence", "permissions"))
    assert nothing_to_mend(evidence, permissions, spec) is entry["rest"]
    assert not nothing_to_mend(evidence, permissions, replace(spec, scale=2))
