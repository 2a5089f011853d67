"""Files that look like models and must be refused, or must fail when they run, with one line and no crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
from onnx import helper

from clusir.export.formats.weights import share_weights
from tests.golden.make.standin import write_standin

# What the metadata may claim, against what the graph is (48 px tiles, clusters 4 + 3, experts 4 + 3, top 1).
LIES: dict[str, dict[str, object]] = {
    "tile_px": {"tile_px": 64, "size": {"multiple_of": 16, "minimum": 16, "static_px": 64}},
    "tile_px_dynamic": {"tile_px": 64, "size": {"multiple_of": 16, "minimum": 16, "static_px": 0}},
    "tile_px_huge": {"tile_px": 2**31 - 16, "size": {"multiple_of": 16, "minimum": 16, "static_px": 0}},
    "tile_px_zero": {"tile_px": 0},
    "halo_px": {"halo_px": 24},
    "halo_px_negative": {"halo_px": -1},
    "channels": {"channels": 1},
    "channels_absurd": {"channels": 2**40},
    "clusters": {"clusters": [4, 4], "cluster_labels": []},
    "clusters_many": {"clusters": [4096] * 64, "experts": [4] * 64, "cluster_labels": []},
    "clusters_strings": {"clusters": ["4", "3"]},
    "experts": {"experts": [4]},
    "top_k": {"top_k": 4},
    "labels": {"cluster_labels": [["a"]]},
    "value_range": {"value_range": [1, 0]},
    "value_range_other": {"value_range": [0, 2]},
    "value_range_nan": {"value_range": [0, 1e308]},
    "layout": {"layout": "NHWC"},
    "graph": {"graph": "router"},
    "graph_whole": {"graph": "whole"},
    "input_name": {"input_name": "picture"},
    "output_name": {"output_name": "posterior"},
    "version": {"spec_version": 6},
    "scale": {"spec_version": 2, "scale": 2},
    "version_huge": {"spec_version": 2**63},
    "multiple_of_zero": {"size": {"multiple_of": 0, "minimum": 0, "static_px": 0}},
    "maximum": {"spec_version": 5, "size": {"static_px": 48, "maximum": 64}},
    "size_list": {"size": [16]},
    "statistics": {"statistics": 5},
    "statistics_none": {"statistics": 0},
    "statistics_negative": {"statistics": -8},
    "statistics_huge": {"statistics": 2**40},
}
RAW = {"json_broken": "{", "json_deep": "[" * 100_000, "json_empty": "", "json_bare": "tile"}


def write_bad_models(folder: Path) -> Path:
    """Fills FOLDER with the stand-in model and FOLDER/bad with its liars; returns FOLDER."""
    good = write_standin(folder)
    bad = folder / "bad"
    bad.mkdir(exist_ok=True)
    tile = good.with_name("standin.tile.onnx")
    router = good.with_name("standin.router.onnx")

    def write(name: str, changes: dict[str, str]) -> None:
        model = onnx.load(tile)
        properties = {entry.key: entry.value for entry in model.metadata_props} | changes
        del model.metadata_props[:]
        helper.set_model_props(model, properties)
        onnx.save(model, bad / f"{name}.tile.onnx")
        shutil.copy(router, bad / f"{name}.router.onnx")

    for name, lie in LIES.items():
        write(name, {f"clusir.{key}": json.dumps(value) for key, value in lie.items()})
    for name, text in RAW.items():
        write(name, {"clusir.tile_px": text})
    write("another_checkpoint", {"clusir.checkpoint_sha256": json.dumps("1" * 64)})

    # NaN of any output that is used is an error.
    for output in ("restored", "posterior", "expert_probability", "statistics"):
        write_standin(bad, f"nan_{output}", spoilt=output)
        (bad / f"nan_{output}.onnx").unlink()  # opened by the name of its tile graph
    plain = onnx.load(tile)
    del plain.metadata_props[:]
    onnx.save(plain, bad / "no_metadata.onnx")
    data = tile.read_bytes()
    (bad / "truncated.onnx").write_bytes(data[: len(data) // 2])
    (bad / "empty.onnx").write_bytes(b"")
    (bad / "text.onnx").write_text("this is not a model\n" * 50, encoding="utf-8")
    shutil.copy(tile, bad / "routerless.tile.onnx")

    # Weights in another file: elsewhere, through a link, not there, too short, of another export.
    (folder / "secret.data").write_bytes(bytes(1 << 16))
    (bad / "there.data").write_bytes(bytes(1 << 16))
    (bad / "link.data").symlink_to(folder / "secret.data")
    for name, entries in {
        "elsewhere": {"location": "../secret.data"},
        "absolute": {"location": str(folder / "secret.data")},
        "link": {"location": "link.data"},
        "folder": {"location": "."},
        "unnamed": {"location": ""},
        "missing": {"location": "missing.data"},
        "beyond": {"location": "there.data", "offset": str((1 << 16) - 4)},
        "far": {"location": "there.data", "offset": str(2**64 - 8)},
        "no_number": {"location": "there.data", "offset": "1e3"},
        "short": {"location": "there.data", "length": "8"},
        "other": {"location": "there.data", "checksum": "0" * 40},
    }.items():
        model = onnx.load(tile)
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        for key, value in ({"length": str(len(tensor.raw_data))} | entries).items():
            tensor.external_data.add(key=key, value=value)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        (bad / f"weights_{name}.tile.onnx").write_bytes(model.SerializeToString())
        shutil.copy(router, bad / f"weights_{name}.router.onnx")

    # And a good model whose weights are shared.
    shared = folder / "shared"
    shared.mkdir()
    share_weights([Path(shutil.copy(path, shared)) for path in (good, tile, router)])
    return folder
