"""The graph passes that make an exported network fast, in their order.

Each one leaves standard ONNX and the same numbers to rounding, and refuses with a reason what it does not understand;
none depends on the network it was written for. What each gains is measured by ``python -m tests.bench.graphs``.
"""

from __future__ import annotations

import onnx

from clusir.export.base import Pass
from clusir.export.passes.fuse_haar import FuseHaar
from clusir.export.passes.fuse_resize import FuseResize
from clusir.export.passes.fuse_spectral import FuseSpectralFilter
from clusir.export.passes.fuse_upsample import FuseUpsample
from clusir.export.passes.gram_attention import GramAttention
from clusir.export.passes.mean_as_convolution import MeanAsConvolution
from clusir.export.passes.order_gelu import OrderGelu
from clusir.export.passes.pair_depthwise import PairDepthwise
from clusir.export.passes.pixel_major import PixelMajor
from clusir.export.passes.plain.dot_products import DotProducts
from clusir.export.passes.plain.leading_axes import LeadingAxes
from clusir.export.passes.positionwise_spectrum import PositionwiseSpectrum
from clusir.export.passes.split_convolution import SplitConvolution

__all__ = ["fusing_passes"]


def fusing_passes() -> list[Pass[onnx.ModelProto]]:
    """Passes on a simplified graph. LeadingAxes is for OpenVINO, which refuses what it rewrites; the others are faster.

    FuseHaar before FuseUpsample: it makes some of the DepthToSpace. FuseSpectralFilter before PositionwiseSpectrum: it
    is the faster of the two. PairDepthwise before SplitConvolution: it makes the Split that the latter cuts. PixelMajor
    last: it stands between maps and the products that the others write.
    """
    return [
        LeadingAxes(),
        FuseHaar(),
        GramAttention(),
        FuseSpectralFilter(),
        PositionwiseSpectrum(),
        FuseResize(),
        MeanAsConvolution(),
        OrderGelu(),
        DotProducts(),
        FuseUpsample(),
        PairDepthwise(),
        SplitConvolution(),
        PixelMajor(),
    ]
