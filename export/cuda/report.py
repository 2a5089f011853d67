"""The report of the CUDA matrix: which bars are met, then every row; Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusir.export.cuda.plan import MatrixPlan, MatrixRow
from clusir.export.validate.tolerances import tolerance
from clusir.markdown import table
from clusir.runtimes.machine.fingerprint import describe

__all__ = ["MatrixReport"]

_COLUMNS = (
    "model", "engine", "form", "shape", "precision", "batch", "ok", "max abs", "dB", "flips", "p50 ms", "p95 ms",
    "MPix/s", "MiB", "nodes", "tensor operators on CPU", "copies",
)  # fmt: skip


@dataclass
class MatrixReport:
    """All rows of one run on one machine."""

    machine: dict[str, Any]
    device: str
    plan: MatrixPlan
    runs: int
    rows: list[MatrixRow]

    @property
    def judged(self) -> list[MatrixRow]:
        """Rows that have to be right: ours. An INT8 form that a converter or kernel refuses is listed, not judged."""
        return [r for r in self.rows if not r.reference_only and not (r.precision == "int8" and r.error)]

    @property
    def passed(self) -> bool:
        """Whether there are rows, and all that are judged are right."""
        return bool(self.judged) and all(row.ok for row in self.judged)

    def bars(self) -> list[tuple[str, bool | None, str]]:
        """What was promised: (bar, met or None where it was not measured, figure)."""
        found: list[tuple[str, bool | None, str]] = []
        for precision in self.plan.precisions:
            bounds = tolerance(precision, self.device)
            limit = f" and <= {bounds.max_abs:g} max abs" if bounds.max_abs is not None else ""
            gates = ", gates equal" if bounds.gates_equal else ""
            rows = [r for r in self.judged if r.precision == precision and r.psnr_db is not None]
            worst = min(rows, key=lambda r: r.psnr_db or 0.0, default=None)
            largest = max((r.max_abs or 0.0 for r in rows), default=0.0)
            figure = "not measured" if worst is None else f"worst {worst.psnr_db:.1f} dB, {largest:.1e} ({worst.key})"
            met = None if worst is None else all(r.within for r in rows)
            found.append((f"{precision} >= {bounds.psnr_db:g} dB{limit}{gates}", met, figure))
        on_cpu = [r for r in self.judged if r.tensor_on_cpu]
        cuda = self.device == "cuda"
        figure = f"{len(on_cpu)} rows with such nodes" if cuda else "needs a card"
        found.append(("no tensor operator on the CPU", not on_cpu if cuda else None, figure))
        found += self._speed()
        return found

    def _speed(self) -> list[tuple[str, bool | None, str]]:
        """ORT fp16 against torch.compile fp16, per model and batch: the best of our forms."""
        found: list[tuple[str, bool | None, str]] = []
        for model in (m for m in self.plan.models if m in ("tiny", "small")):
            for batch in self.plan.batches:
                same = [r for r in self.rows if (r.model, r.batch, r.precision) == (model, batch, "fp16") and r.p50_ms]
                ours = min((r.p50_ms or 0.0 for r in same if not r.reference_only), default=None)
                theirs = next((r.p50_ms for r in same if r.engine == "torch compile"), None)
                bar = f"{model} fp16 batch {batch}: ORT at least as fast as torch.compile"
                if ours is None or theirs is None:
                    found.append((bar, None, "not measured"))
                else:
                    found.append((bar, ours <= theirs, f"{ours:.2f} ms against {theirs:.2f} ms"))
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "device": self.device,
            "runs": self.runs,
            "plan": asdict(self.plan),
            "passed": self.passed,
            "bars": [{"bar": bar, "met": met, "figure": figure} for bar, met, figure in self.bars()],
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Heading with date and hardware, bars, table, refused rows."""
        words = {True: "met", False: "NOT met", None: "not measured"}
        bars = [(bar, words[met], figure) for bar, met, figure in self.bars()]
        good = [row for row in self.rows if not row.error]
        refused = [(row.key, row.error) for row in self.rows if row.error]
        where = f"{self.runs} timed calls per row, rows of one model, precision and batch taking turns."
        text = [
            f"# Validation matrix on {self.device}, {self.machine['date']}\n",
            f"{describe(self.machine)}\n",
            f"Square tiles of {self.plan.tile_px} px; parity against PyTorch float32 on the CPU; TF32 off; latency of "
            f"one batch from device memory to device memory. {where}\n",
            "## Bars\n",
            table(("bar", "", "measured"), bars, left=3),
            "## Rows\n",
            table(_COLUMNS, [_cells(row) for row in good], left=6),
        ]
        if refused:
            text += ["## Refused\n", table(("row", "reason"), refused, left=2)]
        return "\n".join(text)

    def write(self, folder: Path) -> None:
        """``cuda.md`` and ``cuda.json`` in ``folder`` (named after the device)."""
        (folder / f"{self.device}.md").write_text(self.to_markdown())
        (folder / f"{self.device}.json").write_text(self.to_json() + "\n")


def _cells(row: MatrixRow) -> Sequence[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    nodes = ", ".join(f"{n} {where.removesuffix('ExecutionProvider')}" for where, n in row.nodes.items())
    return (
        row.model, row.engine, row.form, row.shape, row.precision, str(row.batch), "yes" if row.ok else "NO",
        number(row.max_abs, ".1e"), number(row.psnr_db, ".1f"), number(row.flips, "d"), number(row.p50_ms, ".2f"),
        number(row.p95_ms, ".2f"), number(row.megapixels_per_s, ".2f"), number(row.memory_mib, ".0f"), nodes,
        ", ".join(f"{n} {op}" for op, n in row.tensor_on_cpu.items()), str(row.copies),
    )  # fmt: skip
