"""``clusir-doctor``: what is installed, what runs, and the command that fixes what does not."""

from __future__ import annotations

import sys

import click

from clusir.cli._common import command
from clusir.names import BACKENDS, DEVICES


@command(name="clusir-doctor", short_help="Show what runs here, and the command that fixes what does not.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Exit 3 unless this backend works.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Exit 3 unless this device works.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def main(backend: str, device: str, as_json: bool) -> None:
    """Run a tiny network on every device of every installed backend, and print the command that fixes what fails.

    \b
    Exit codes: 0 everything that is installed works; 1 something that is installed is broken; 2 usage;
    3 no backend works, or the one named with --backend and --device does not.
    """
    import json
    from pathlib import Path

    import clusir.weights
    from clusir.runtimes.machine.diagnose import cuda_advice, diagnose

    result = diagnose(Path(str(clusir.weights.__file__)).parent)
    wanted = "" if device == "auto" else device
    code = result.exit_code(backend, wanted)
    if code == 3 and device == "cuda" and not any(f.fix and "cuda" in f.what.lower() for f in result.findings):
        result.findings.append(cuda_advice(result.machine, backend))
    if as_json:
        click.echo(json.dumps({**result.as_dict(), "exit_code": code}, indent=2))
        sys.exit(code)

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    machine = result.machine
    console.print(f"[bold]{escape(machine['cpu'])}[/bold] · {machine['cores']} cores · {machine['memory_mib']} MiB")
    console.print(f"instruction sets: {', '.join(machine['cpu_features']) or 'unknown'}")
    console.print("cards: " + (", ".join(f"{c.get('name')} ({c.get('memory')})" for c in machine["gpus"]) or "none"))
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    console.print(f"Python {machine['python']}: {escape(versions)}\n")

    table = Table("device", "runs", "", box=None, pad_edge=False, header_style="dim")
    for done in result.probes:
        mark = "[green]yes[/green]" if done.ok else "[red]no[/red]"
        table.add_row(escape(done.name), mark, escape(done.detail or done.reason))
    console.print(table)
    for model in result.models:
        console.print(f"[dim]shipped model[/dim] {escape(model['file'])} {model['mb']} MB")
    for speed in result.speeds:
        times = ", ".join(f"{label} {ms:.1f}" for label, ms in speed["milliseconds"].items())
        console.print(
            f"[dim]speed[/dim] {escape(speed['model'])}: {times} ms a tile; --precision auto takes {speed['fastest']} "
            f"(measured {escape(speed['date'])})"
        )
    if not result.speeds:
        console.print("[dim]speed[/dim] not measured here; clusir-run --precision auto does it once")
    colours = {"error": "red", "warning": "yellow", "note": "blue"}
    for finding in result.findings:
        console.print(f"\n[{colours[finding.level]}]{finding.level}[/]: {escape(finding.what)}")
        if finding.fix:
            console.print(f"  fix: [bold]{escape(finding.fix)}[/bold]")
    if code == 3:
        needed = f"{backend} on {device}" if wanted or backend != "auto" else "any backend"
        console.print(f"\n[red]not available here:[/red] {needed}")
    sys.exit(code)
