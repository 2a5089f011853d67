"""The architectures of spandrel and of spandrel-extra-arches, each small and with random weights.

``SETTINGS``: what the constructor is given. Those in ``AS_MODULE`` have one size of weights in spandrel, which is too
large to be tried here: they are built smaller and exported as a module, called as spandrel calls them. What their
constructors fix is made smaller through the names that they look up (``STAND_INS``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

__all__ = [
    "AS_MODULE",
    "COLOURS",
    "NAMES",
    "PAINTERS",
    "SETTINGS",
    "STAND_INS",
    "build",
    "call_of",
    "disturb",
    "save",
    "side",
]

Arguments = dict[str, Any]
_WINDOWS: Arguments = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 2,
                       "upsampler": "pixelshuffle"}  # fmt: skip
_STEPS: Arguments = {"embed_dim": 12, "depth": [2], "num_heads": [2], "upscale": 2}
_LEVELS: Arguments = {"nc": [8, 16, 24, 32], "nb": 2}
_CODES: Arguments = {"codebook_params": [[128, 64, 32]], "gt_resolution": 512, "LQ_stage": True, "scale_factor": 2}

# name: (class, arguments)
SETTINGS: dict[str, tuple[str, Arguments]] = {
    "Compact": ("Compact", {"num_feat": 16, "num_conv": 2, "upscale": 2}),
    "SwiftSRGAN": ("SwiftSRGAN", {"num_channels": 16, "num_blocks": 1, "upscale_factor": 2}),
    "HAT": ("HAT", {**_WINDOWS, "compress_ratio": 2, "squeeze_factor": 6}),
    "GRL": ("GRL", {"embed_dim": 12, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2],
                    "anchor_window_down_factor": 4, "stripe_shift": True}),
    "Swin2SR": ("Swin2SR", _WINDOWS),
    "SwinIR": ("SwinIR", _WINDOWS),
    "GFPGAN": ("GFPGAN", {"out_size": 64, "num_style_feat": 32, "channel_multiplier": 1, "narrow": 0.25, "num_mlp": 2}),
    "RestoreFormer": ("RestoreFormer", {"n_embed": 64, "embed_dim": 32, "ch": 32, "ch_mult": (1, 1, 1, 1),
                                        "num_res_blocks": 1, "z_channels": 32}),
    "LaMa": ("LaMa", {"in_nc": 4, "out_nc": 3}),
    "OmniSR": ("OmniSR", {"num_feat": 16, "up_scale": 2}),
    "SCUNet": ("SCUNet", {"config": [1, 1, 1, 2, 1, 1, 1], "dim": 64}),
    "FBCNN": ("FBCNN", {"nc": [8, 16, 24, 512], "nb": 2}),
    "Uformer": ("Uformer", {"img_size": 128, "embed_dim": 8, "depths": [1] * 9, "modulator": True,
                            "num_heads": [1, 1, 2, 2, 4, 4, 2, 2, 1]}),
    "RGT": ("RGT", {**_STEPS, "embed_dim": 32, "split_size": [8, 8]}),
    "DAT": ("DAT", {**_STEPS, "embed_dim": 32, "depth": [3], "split_size": [4, 8]}),
    "CRAFT": ("CRAFT", {"embed_dim": 32, "depths": [2], "num_heads": [2], "upscale": 2}),
    "KBNet": ("KBNet_s", {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1, 1, 1], "dec_blk_nums": [1, 1, 1, 1]}),
    "DITN": ("DITN", {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2}),
    "MMRealSR": ("MMRealSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1, "num_grow_ch": 8,
                              "num_feats": [8, 8, 16, 16], "num_blocks": [1, 1, 1, 1]}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 2}),
    "RealCUGAN": ("UpCunet2x", {}),
    "SAFMN": ("SAFMN", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "SAFMNBCIE": ("SAFMNBCIE", {"dim": 8, "n_blocks": 1, "num_layers": 2}),
    "DCTLSA": ("DCTLSA", {"nf": 20, "upscale": 2}),
    "FFTformer": ("FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    "NAFNet": ("NAFNet", {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "ATD": ("ATD", {**_WINDOWS, "category_size": 32, "num_tokens": 8, "reducted_dim": 4}),
    "MixDehazeNet": ("MixDehazeNet", {"embed_dims": [8, 16, 32, 16, 8], "depths": [1, 1, 1, 1, 1]}),
    "DRUNet": ("DRUNet", {**_LEVELS, "in_nc": 4, "out_nc": 3}),
    "DnCNN": ("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 4}),
    "IPT": ("IPT", {"patch_size": 24, "patch_dim": 3, "n_feats": 12, "num_layers": 1, "scale": [2]}),
    "DRCT": ("DRCT", {**_WINDOWS, "mlp_ratio": 2, "gc": 8}),
    "ESRGAN": ("ESRGAN", {"num_filters": 16, "num_blocks": 1, "scale": 2}),
    "PLKSR": ("RealPLKSR", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "RetinexFormer": ("RetinexFormer", {"n_feat": 8, "stage": 1}),
    "HVICIDNet": ("HVICIDNet", {"channels": [8, 8, 16, 32], "heads": [1, 2, 2, 4]}),
    "SeemoRe": ("SeemoRe", {"scale": 2, "num_experts": 3, "num_layers": 2, "embedding_dim": 12}),
    "MoSR": ("MoSR", {"n_block": 2, "dim": 16, "upscale": 2}),
    "MoESR": ("MoESR", {"scale": 2, "dim": 16, "n_blocks": 1, "n_block": 2, "upsample_dim": 16}),
    "RCAN": ("RCAN", {"scale": 2, "n_resgroups": 1, "n_resblocks": 2, "n_feats": 32}),
    "FDAT": ("FDAT", {"scale": 2, "embed_dim": 24, "num_groups": 1, "depth_per_group": 1, "num_heads": 4,
                      "mid_dim": 16}),
    "AuraSR": ("AuraSR", {"dim": 8, "image_size": 64, "input_image_size": 16, "style_network": {"dim_in": 16,
                          "dim_out": 32, "depth": 2}, "attn_depths": (1, 1, 1, 1, 1), "mid_attn_depth": 1}),
    "SRFormer": ("SRFormer", {**_WINDOWS, "window_size": 12}),
    "CodeFormer": ("CodeFormer", {"dim_embd": 32, "n_head": 2, "n_layers": 1, "codebook_size": 64, "connect_list": []}),
    "MAT": ("MAT", {}),
    "DDColor": ("DDColor", {"encoder_name": "convnext-t", "nf": 64, "num_queries": 16, "dec_layers": 3,
                            "input_size": (64, 64), "num_output_channels": 2}),
    "AdaCode": ("AdaCode", {**_CODES, "codebook_params": [[128, 64, 32], [128, 32, 32]]}),
    "FeMaSR": ("FeMaSR", _CODES),
    "M3SNet": ("M3SNet", {"width": 8, "enc_blk_nums": [1, 1, 1, 1], "dec_blk_nums": [1, 1, 1, 1]}),
    "Restormer": ("Restormer", {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}),
    "MPRNet": ("MPRNet", {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1}),
    "MIRNet2": ("MIRNet2", {"n_feat": 16, "n_MRB": 1}),
}  # fmt: skip
NAMES = tuple(SETTINGS)
EXTRA = NAMES[NAMES.index("SRFormer") :]
_DDCOLOR = "spandrel_extra_arches.architectures.DDColor"
AS_MODULE: dict[str, Callable[..., Tensor]] = {
    "GFPGAN": lambda model, image: model(image)[0],
    "LaMa": lambda model, *given: model(*given),
    "MAT": lambda model, *given: model(*given),
    "FeMaSR": lambda model, image: model(image),
    "AdaCode": lambda model, image: model(image),
    "CodeFormer": lambda model, image: model(image)[0],
    "DDColor": lambda model, image: call_of("DDColor")(model, image),
}
PAINTERS = frozenset(("LaMa", "MAT"))  # those of AS_MODULE that take a mask
COLOURS = frozenset(("DDColor",))  # those of AS_MODULE that take a grey picture and return a colour one
_SIDES = {"CodeFormer": 512, "MAT": 512}  # of those in AS_MODULE, where not 64


def _few_windows(layers: type[nn.Module]) -> Callable[..., nn.Module]:
    """FeMaSR's layers of windows: one of two blocks at 128 channels, not four of six at 256."""

    def made(*_: Any, **__: Any) -> nn.Module:
        few: Any = layers(embed_dim=128, blk_depth=2, num_heads=2)
        del few.swin_blks[1:]
        return few  # type: ignore[no-any-return]

    return made


def _narrow_scales(decoder: type[nn.Module]) -> Callable[..., nn.Module]:
    """DDColor's colours read maps of 64 channels and not of 512."""
    return lambda in_channels, **more: decoder(in_channels=[64, 64, 32], color_embed_dim=32, **more)


def _few_blocks(generator: type[nn.Module]) -> Callable[..., nn.Module]:
    """LaMa's network of 16 channels and two blocks, not of 64 and eighteen."""
    return lambda given, made: generator(given, made, ngf=16, n_blocks=2)


def _narrow_stage(stage: type[nn.Module]) -> Callable[..., nn.Module]:
    """MAT's first stage of 36 channels, not 180."""
    return lambda *given, **more: stage(*given, dim=36, **more)


def _half_as_wide(init: Callable[..., None]) -> Callable[..., None]:
    return lambda self, size, width, *more: init(self, size, width // 2, *more)


# name: (module below the package, what is looked up, how it is replaced)
STAND_INS: dict[str, tuple[tuple[str, str, Callable[[Any], Any]], ...]] = {
    "FeMaSR": (("FeMaSR.__arch.femasr", "SwinLayers", _few_windows),),
    "AdaCode": (
        ("FeMaSR.__arch.femasr", "SwinLayers", _few_windows),
        ("AdaCode.__arch.adacode_contrast_arch", "SwinLayers", _few_windows),
    ),
    "LaMa": (("LaMa.__arch.LaMa", "FFCResNetGenerator", _few_blocks),),
    "MAT": (
        ("MAT.__arch.MAT", "nf", lambda widths: lambda stage: widths(stage) // 16),
        ("MAT.__arch.MAT", "FirstStage", _narrow_stage),
    ),
    "DDColor": (("DDColor.__arch.ddcolor", "MultiScaleColorDecoder", _narrow_scales),),
    "CodeFormer": (("CodeFormer.__arch.codeformer", "VQAutoEncoder.__init__", _half_as_wide),),
}


@contextmanager
def _smaller(package: str, name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for module, attribute, replaced in STAND_INS.get(name, ()):
            owner: Any = importlib.import_module(f"{package}.architectures.{module}")
            *path, last = attribute.split(".")
            for part in path:
                owner = getattr(owner, part)
            stack.enter_context(mock.patch.object(owner, last, replaced(getattr(owner, last))))
        yield


def call_of(name: str) -> Callable[..., Tensor]:
    """How spandrel calls a network of AS_MODULE."""
    if name == "DDColor":
        call: Callable[..., Tensor] = importlib.import_module(_DDCOLOR)._call
        return call
    return AS_MODULE[name]


def side(name: str) -> int:
    """A side in pixels that a network of AS_MODULE takes."""
    return _SIDES.get(name, 64)


def build(name: str) -> nn.Module:
    """The network ``name``, small, with weights of seed 0, constant ones disturbed."""
    package = "spandrel_extra_arches" if name in EXTRA else "spandrel"
    class_name, arguments = SETTINGS[name]
    torch.manual_seed(0)
    made = getattr(importlib.import_module(f"{package}.architectures.{name}"), class_name)
    with _smaller(package, name):
        model: nn.Module = made(**arguments)
    model = disturb(model.eval().requires_grad_(False))
    if name == "LaMa":
        _settled(model)
    if name == "DDColor":  # colours of Lab are tens
        model.refine_net[0][0].weight_u /= 50  # type: ignore[index, union-attr]
    return model


@torch.no_grad()
def _settled(model: nn.Module) -> None:
    """Batch norms get the statistics of a picture, as training leaves them: with those that they begin with, what many
    layers make of it fades, and a hole is painted grey whatever surrounds it."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    draw = torch.Generator().manual_seed(2)
    for norm in norms:
        norm.train().momentum = 1.0
    model(torch.rand(2, 3, 64, 64, generator=draw), (torch.rand(2, 1, 64, 64, generator=draw) > 0.5).float())
    for norm in norms:
        norm.eval().momentum = 0.1


@torch.no_grad()
def disturb(model: nn.Module) -> nn.Module:
    """Constant parameters and statistics (ones, zeros) get different values: a branch that begins with zero would hide
    whatever is wrong in it."""
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        elif parameter.numel() == 1:
            parameter += 0.1
    for module in model.modules():
        if type(module).__name__ == "VectorQuantizer":  # codes begin within 1/n of 0, so near that rounding picks one
            module.embedding.weight *= module.embedding.num_embeddings  # type: ignore[union-attr, operator]
        if hasattr(module, "weight_u"):  # a spectral norm that divides by what is none leaves huge weights
            left, _, right = torch.linalg.svd(module.weight_orig.flatten(1), full_matrices=False)  # type: ignore[operator]
            module.weight_u.copy_(left[:, 0])  # type: ignore[operator]
            module.weight_v.copy_(right[0])  # type: ignore[operator]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean += 0.05 * torch.randn(module.running_mean.shape, generator=draw)
            module.running_var *= 1 + 0.2 * torch.rand(module.running_mean.shape, generator=draw)
    return model


def save(name: str, path: Path) -> int:
    """Write the weights of ``name`` as a published file holds them; returns how many numbers they are."""
    weights = build(name).state_dict()
    torch.save(weights, path)
    return sum(value.numel() for value in weights.values() if value.is_floating_point())
