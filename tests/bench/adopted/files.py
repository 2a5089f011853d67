"""Files as other tools write them: both exporters of torch, NHWC as of tf2onnx, external data, float16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

__all__ = ["FILES"]


class Network(nn.Module):
    """Much of what published restorers are made of; ``pools``: with norms and channel attention over the picture."""

    def __init__(self, scale: int = 1, pools: bool = False, fused: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.pools, self.fused = scale, pools, fused
        self.first = nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect")
        self.down, self.up = nn.Conv2d(16, 24, 3, 2, 1), nn.ConvTranspose2d(24, 16, 2, 2)
        self.group, self.instance = nn.GroupNorm(4, 24), nn.InstanceNorm2d(24, affine=True)
        self.layer, self.qkv, self.mix = nn.LayerNorm(24), nn.Conv2d(24, 72, 1), nn.Conv2d(24, 24, 1)
        self.squeeze = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
        self.last, self.act = nn.Conv2d(16, 3 * scale * scale, 3, padding=1), nn.PReLU(16)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        y = F.pad(x, (0, (8 - w % 8) % 8, 0, (8 - h % 8) % 8), mode="reflect")
        f = self.act(self.first(y))
        g = self.down(f)
        g = F.gelu(self.group(g) if self.pools else g)
        g = g + (self.instance(g) if self.pools else g)
        g = g + self.mix(self.attended(self.layer(g.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        f = f + self.up(g) + F.interpolate(g[:, :16], scale_factor=2, mode="bilinear", align_corners=False)
        f = f + F.interpolate(F.max_pool2d(f, 2), size=f.shape[2:], mode="nearest")
        f = F.leaky_relu(f * self.squeeze(F.adaptive_avg_pool2d(f, 1)) if self.pools else f, 0.1)
        made = F.pixel_shuffle(self.last(f), self.scale) if self.scale > 1 else self.last(f)
        made = 0.1 * made + F.interpolate(y, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return made[:, :, : h * self.scale, : w * self.scale].clamp(-1, 2)

    def attended(self, x: Tensor) -> Tensor:
        """Attention in windows of four by four."""
        b, c, h, w = x.shape
        parts = self.qkv(x).view(b, 3, c, h // 4, 4, w // 4, 4).permute(1, 0, 3, 5, 4, 6, 2)
        q, k, v = parts.reshape(3, b * (h // 4) * (w // 4), 1, 16, c)
        if self.fused:
            made = F.scaled_dot_product_attention(q, k, v)
        else:
            made = (q @ k.transpose(-2, -1) * 24**-0.5).softmax(-1) @ v
        return made.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def legacy(path: Path, opset: int, axes: str = "nhw", half: bool = False, batch: int = 1, **network: Any) -> None:
    """By TorchScript; ``axes``: those that stay open."""
    net, x = Network(fused=opset > 13, **network).eval(), torch.rand(batch, 3, 64, 64)
    net, x = (net.half(), x.half()) if half else (net, x)
    free = {name: {"nchw".index(axis): f"{axis}_{name}" for axis in axes} for name in ("input", "output")}
    torch.onnx.export(net, (x,), str(path), dynamo=False, opset_version=opset, dynamic_axes=free if axes else None,
                      input_names=["input"], output_names=["output"])  # fmt: skip


def dynamo(
    path: Path, opset: int, axes: str = "nhw", half: bool = False, external: bool = False, scale: int = 1
) -> None:
    """By torch.export; ``axes``: those that stay open."""
    net, x = Network(scale).eval(), torch.rand(2 if "n" in axes else 1, 3, 72 if axes else 64, 88 if axes else 64)
    net, x = (net.half(), x.half()) if half else (net, x)
    shapes = ({"nchw".index(axis): torch.export.Dim.AUTO for axis in axes},) if axes else None
    torch.onnx.export(net, (x,), str(path), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                      external_data=external)  # fmt: skip


def channels_last(path: Path, opset: int, scale: int = 1, fixed: bool = False) -> None:
    """NHWC with transposes around convolutions, SAME pads, sizes computed from Shape, names with colons."""
    draw, node = np.random.default_rng(1), helper.make_node
    shapes = {"w1": (8, 3, 3, 3), "w2": (3 * scale**2, 8, 3, 3), "b1": (8,), "mix": (8, 8)}
    numbers: dict[str, Any] = {name: draw.normal(0, 0.1, shape) for name, shape in shapes.items()} | {"half": 0.5}
    whole = {"axes": [1, 2], "zero": [0], "one": [1], "two": [2], "three": [3], "times": [scale, scale]}
    came, made = "serving_default_input_1:0", "StatefulPartitionedCall:0"
    mean = (
        node("ReduceMean", ["lr", "axes"], ["gap"]) if opset >= 18 else node("ReduceMean", ["lr"], ["gap"], axes=[1, 2])
    )
    nodes: list[NodeProto] = [
        node("Transpose", [came], ["x:0"], perm=[0, 3, 1, 2]),
        node("Conv", ["x:0", "w1"], ["c1"], auto_pad="SAME_UPPER", kernel_shape=[3, 3]),
        node("Transpose", ["c1"], ["n1"], perm=[0, 2, 3, 1]), node("Add", ["n1", "b1"], ["a1"]),
        node("MatMul", ["a1", "mix"], ["mm"]), node("LeakyRelu", ["mm"], ["lr"], alpha=0.2), mean,
        node("Sigmoid", ["gap"], ["gate"]), node("Mul", ["lr", "gate"], ["scaled"]),
        node("Transpose", ["scaled"], ["t2"], perm=[0, 3, 1, 2]),
        node("Conv", ["t2", "w2"], ["c2"], auto_pad="SAME_UPPER", kernel_shape=[3, 3]),
        node("DepthToSpace", ["c2"], ["d2"], blocksize=scale, mode="DCR"),
        node("Transpose", ["d2"], ["o"], perm=[0, 2, 3, 1]),
        node("Shape", [came], ["shape"]), node("Slice", ["shape", "one", "three", "zero"], ["hw"]),
        node("Mul", ["hw", "times"], ["large"]), node("Shape", ["x:0"], ["nchw"]),
        node("Slice", ["nchw", "zero", "two", "zero"], ["nc"]), node("Concat", ["nc", "large"], ["sizes"], axis=0),
        node("Resize", ["x:0", "", "", "sizes"], ["rs"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Transpose", ["rs"], ["rn"], perm=[0, 2, 3, 1]), node("Mul", ["o", "half"], ["less"]),
        node("Add", ["less", "rn"], [made]),
    ]  # fmt: skip
    constants = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in numbers.items()]
    constants += [numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in whole.items()]
    shape = [1, 64, 64, 3] if fixed else ["unk__1", "unk__2", "unk__3", 3]
    answer = [1, 64 * scale, 64 * scale, 3] if fixed else ["unk__1", "unk__4", "unk__5", 3]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "tf2onnx", [helper.make_tensor_value_info(came, kind, shape)],
                              [helper.make_tensor_value_info(made, kind, answer)], constants)  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), str(path))


def external(path: Path, **how: Any) -> None:
    """With its weights in other files."""
    legacy(path, 17)
    model = onnx.load(path)
    path.unlink()
    (path.parent / "data").mkdir(exist_ok=True)
    onnx.save(model, str(path), save_as_external_data=True, size_threshold=100, **how)


def cut_short(path: Path) -> None:
    """With half of its weights' file."""
    external(path, location="data/w.bin")
    data = path.parent / "data" / "w.bin"
    data.write_bytes(data.read_bytes()[:9999])


def late(path: Path) -> None:
    """Of an opset that is not read here."""
    legacy(path, 17)
    model = onnx.load(path)
    model.opset_import[0].version = 24
    onnx.save(model, str(path))


FILES: dict[str, Callable[[Path], None]] = {
    **{f"TorchScript, opset {n}": lambda p, n=n: legacy(p, n) for n in (11, 13, 16, 18, 20)},
    "TorchScript, opset 17, norms and channel attention": lambda p: legacy(p, 17, pools=True),
    "TorchScript, opset 17, twice as large": lambda p: legacy(p, 17, scale=2),
    "TorchScript, opset 17, one size": lambda p: legacy(p, 17, axes=""),
    "TorchScript, opset 17, batch of 1": lambda p: legacy(p, 17, axes="hw"),
    "TorchScript, opset 17, batch of 4": lambda p: legacy(p, 17, axes="", batch=4),
    "TorchScript, opset 17, float16": lambda p: legacy(p, 17, half=True),
    **{f"torch.export, opset {n}": lambda p, n=n: dynamo(p, n) for n in (18, 20, 21, 23)},
    "torch.export, opset 18, four times as large": lambda p: dynamo(p, 18, scale=4),
    "torch.export, opset 18, one size": lambda p: dynamo(p, 18, axes=""),
    "torch.export, opset 18, float16": lambda p: dynamo(p, 18, half=True),
    "torch.export, opset 18, external data": lambda p: dynamo(p, 18, external=True),
    **{f"NHWC, opset {n}": lambda p, n=n: channels_last(p, n) for n in (11, 13, 15, 18)},
    "NHWC, opset 13, twice as large": lambda p: channels_last(p, 13, scale=2),
    "NHWC, opset 13, one size": lambda p: channels_last(p, 13, fixed=True),
    "external data, a file a tensor": lambda p: external(p, all_tensors_to_one_file=False),
    "external data in a folder": lambda p: external(p, location="data/w.bin"),
    "external data, cut short": cut_short,
    "opset 24": late,
}
