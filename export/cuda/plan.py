"""The CUDA validation matrix as data: what is run, what came of each row, and what the report must say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FULL", "QUICK", "MatrixPlan", "MatrixRow"]


@dataclass(frozen=True)
class MatrixPlan:
    """Every combination of the tuples is a row; ``tile_px`` is the side of the static tile, in pixels.

    ``torch_modes`` are measured beside them on the same tiles, and ``dft_operator`` adds fp32 rows whose FFTs are the
    DFT operator.
    """

    models: tuple[str, ...] = ("tiny", "small", "base")
    routers: tuple[str, ...] = ("dense", "conditional")
    shapes: tuple[str, ...] = ("static", "dynamic")
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    batches: tuple[int, ...] = (1, 4, 16)
    torch_modes: tuple[str, ...] = ("eager", "channels_last", "compile")
    dft_operator: bool = True
    tile_px: int = 256
    kinds: tuple[str, ...] = ("noise", "low_light", "none")


FULL = MatrixPlan()
QUICK = MatrixPlan(
    models=("tiny",),
    routers=("dense",),
    shapes=("static",),
    precisions=("fp32",),
    batches=(1, 2),
    torch_modes=("eager", "channels_last"),
    tile_px=64,
    kinds=("noise",),
)


@dataclass
class MatrixRow:
    """One configuration. ``engine``: ``ort``, ``ort + CUDA graph`` or ``torch <mode>``; ``form``: router and FFT form.

    ``max_abs`` in units of the 0..1 range, ``psnr_db`` and ``flips`` against PyTorch float32 on the CPU, the worst
    over the inputs; ``within``: all outputs within tolerance; ``ok``: that and, on CUDA, no tensor operator on the
    CPU. Latency is of one batch, from device to device; ``memory_mib`` is what the card gave while the row was
    open. ``checkpoint`` is the sha256 of the weights (empty: random ones); rows of other weights, another
    ``device`` or side of a tile are other rows.
    """

    model: str
    engine: str
    form: str
    shape: str
    precision: str
    batch: int
    checkpoint: str = ""
    max_abs: float | None = None
    psnr_db: float | None = None
    flips: int | None = None
    ok: bool = False
    within: bool = False
    p50_ms: float | None = None
    p95_ms: float | None = None
    megapixels_per_s: float | None = None
    memory_mib: float | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    tensor_on_cpu: dict[str, int] = field(default_factory=dict)
    copies: int = 0
    error: str = ""
    device: str = ""
    tile_px: int = 0

    @property
    def key(self) -> str:
        """What makes the row unique in its matrix."""
        where = (self.device, f"{self.tile_px} px") if self.device else ()
        return "/".join((self.model, self.engine, self.form, self.shape, self.precision, str(self.batch), *where))

    @property
    def reference_only(self) -> bool:
        """Rows that are there to compare with: their faults are the finding, not a failure."""
        return self.engine.startswith("torch") or self.form.endswith("DFT operator")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
