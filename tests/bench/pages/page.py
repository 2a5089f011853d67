"""The benchmark page as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.pages.transforms import CASES, CONTENDERS

if TYPE_CHECKING:
    from tests.bench.graphs import Page, Row

__all__ = ["as_markdown"]

_KINDS = 8  # of kernels named under a table


def as_markdown(page: Page) -> str:
    """Tables for people; the numbers behind them are in graphs.json."""
    machine = page.machine
    lines = [
        "# Exported graphs, measured",
        "",
        f"{machine['processor']}, {machine['threads']} threads, {machine['clock']}, best of {machine['runs']} turns, "
        f"alternating; torch {machine['torch']}, ONNX Runtime {machine['onnxruntime']}, "
        f"OpenVINO {machine['openvino']}. Convolution peak: a 3x3 convolution of 64 to 64 channels on ONNX Runtime, "
        "measured beside each network.",
    ]
    if page.transforms:
        lines += _transforms(page)
    for name, rows in page.networks.items():
        size, peak = machine["picture_px"], page.peak[name]
        lines += ["", f"## {name}, {size}x{size}, {page.gflop[name]:.2f} GFLOP, peak {peak:.0f} GFLOP/s", ""]
        lines += _network(rows, page.gflop[name], peak)
        lines += _beside_plain(rows)
        for runtime, kinds in page.kernels.get(name, {}).items():
            parts = [f"{kind} {spent:.1f}" for kind, spent in list(kinds.items())[:_KINDS]]
            lines += ["", f"Kernels of ours on {runtime}, ms of {sum(kinds.values()):.1f}: {', '.join(parts)}."]
    return "\n".join(lines) + "\n"


def _transforms(page: Page) -> list[str]:
    lines = [
        "",
        "## rfft2 + irfft2 of [1, 48, N, N] on ONNX Runtime, beside torch.fft",
        "",
        'Milliseconds (times torch.fft). "Masked" has a real mask between the transforms, as in a frequency filter, '
        '"rectified" a ReLU of the real and imaginary parts, for which the spectrum must be complex and in its usual '
        "order; torch does the same to its spectrum.",
        "",
        "| N | " + " | ".join(f"{what}{case}" for case in CASES for what in CONTENDERS) + " | largest error |",
        "|---" * (1 + len(CASES) * len(CONTENDERS)) + "|---|",
    ]
    for n, row in page.transforms.items():
        cells = []
        for case in CASES:
            base = row[f"torch.fft{case}"]["minimum_ms"]
            for what in CONTENDERS:
                spent = row[f"{what}{case}"]["minimum_ms"]
                cells.append(f"{spent:.2f}" if what == "torch.fft" else f"{spent:.2f} ({spent / base:.2f}x)")
        worst = max(row[f"ours{case}"]["error"] for case in CASES)
        lines.append(f"| {n} | {' | '.join(cells)} | {worst:.0e} |")
    return lines


def _network(rows: list[Row], gflop: float, peak: float) -> list[str]:
    torch_rows = [r.time.minimum_ms for r in rows if r.time and r.what.startswith(("PyTorch", "torch.compile"))]
    best = min(torch_rows, default=float("nan"))
    lines = [
        "| | best ms | middle ms | times as fast as the best PyTorch | of the convolution peak | error | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.time is None:
            lines.append(f"| {row.what} | | | | | | {row.why} |")
            continue
        spent = row.time.minimum_ms
        share = gflop / spent * 1e3 / peak
        error = "" if row.error is None else f"{row.error:.0e}"
        times = f"{spent:.1f} | {row.time.median_ms:.1f} | {best / spent:.2f}"
        lines.append(f"| {row.what} | {times} | {share:.0%} | {error} | {row.why} |")
    return lines


def _beside_plain(rows: list[Row]) -> list[str]:
    """One line: ours against the plain exporter's graphs on the same runtime, where those run."""
    spent = {row.what: row.time.minimum_ms for row in rows if row.time}
    parts = []
    for what in spent:
        plain, _, runtime = what.rpartition(", ")
        if plain.startswith("plain export") and f"ours, {runtime}" in spent:
            parts.append(f"{spent[what] / spent[f'ours, {runtime}']:.2f} times as fast as the {plain} on {runtime}")
    return ["", f"Ours is {'; '.join(parts)}."] if parts else []
