"""``clusir page``: the browser page of this installation, served to this machine and opened."""

from __future__ import annotations

from pathlib import Path

import click

from clusir.cli._common import command
from clusir.errors import UsageError
from clusir.names import PRECISIONS


@command(name="clusir-page", short_help="Restore photos in the browser, without sending them anywhere.")
@click.option("--model", type=click.Path(path_type=Path), help="An .onnx file or a bundle; default: the shipped model.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="The model's files of this precision.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="Port to listen on.")
@click.option("--no-open", is_flag=True, help="Only print the address; open no browser.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Serve nothing: write the page and the model into this folder, for a server of your own. The model's weights "
    "are stored as float16, so that visitors download less.",
)
def main(model: Path | None, precision: str | None, port: int, no_open: bool, out: Path | None) -> None:
    """Serve the browser page on 127.0.0.1 and open it. Photos are restored in the browser, by WebAssembly.

    With --out, everything is written into a folder instead, for a server of your own.

    \b
    The page may load from this server and from nowhere else, and sends nothing. Ctrl-C or SIGTERM ends it.
    Exit codes: 0 ended so; 2 usage; 3 the page is not in this installation.
    """
    import signal

    from clusir.runtimes.page.folder import write_page
    from clusir.runtimes.page.server import PageServer, page_files
    from clusir.runtimes.runners.files import find_model

    if out is not None and (port or no_open):
        raise UsageError("--port and --no-open are for a server; with --out there is none: leave them out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where Ctrl-C is ignored, as in the background
    found = find_model(model, precision)
    try:
        if out is not None:
            sizes = write_page(found, out)
            click.echo(f"{out}: the page, and {sum(sizes.values()) / 1e6:.1f} MB of model ({', '.join(sizes)})")
            return
        with PageServer(page_files(found), port) as server:
            click.echo(f"{server.url} (Ctrl-C ends it)")
            if not no_open:
                _open(server.url)
            server.serve_forever()
    except KeyboardInterrupt:
        click.echo("")
    finally:
        found.close()


def _open(url: str) -> None:
    import webbrowser

    try:
        opened = webbrowser.open(url)
    except webbrowser.Error:
        opened = False
    if not opened:
        click.echo(f"no browser could be started here; open {url} yourself", err=True)
