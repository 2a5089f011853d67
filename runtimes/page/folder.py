"""The page and a model as a folder of static files, for a server of one's own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from clusir.errors import UsageError
from clusir.runtimes.page.packing import packed
from clusir.runtimes.page.server import BUILT, MODEL, built_files, model_graphs
from clusir.runtimes.runners.external import DATA_SUFFIX
from clusir.runtimes.runners.files import ModelFiles

__all__ = ["write_page"]


def write_page(model: ModelFiles, folder: Path, built: Path = BUILT) -> dict[str, int]:
    """Write the page and ``model``, packed, into ``folder``, which is not there yet or is empty; ``{file: bytes}`` of
    the model, which is what a visitor downloads beside the page.

    The whole graph is left out where a tile graph and a second one answer for it. Raises UsageError for a folder that
    holds something or a model that a page cannot load, BackendError where the page was not built, ModelFormatError for
    a file that is no model, OSError where it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder} is there and not empty; name a folder that is to be made")
    page, graphs = built_files(built), model_graphs(model)
    if len(graphs) > 1:
        del graphs[f"{MODEL}.onnx"]
    files = packed(graphs, f"{Path(MODEL).name}.onnx{DATA_SUFFIX}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, file in page.items():
            shutil.copyfile(file, made / name)
        sizes = {}
        for name, content in files.items():
            path = made / Path(MODEL).parent / Path(name).name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            sizes[path.relative_to(made).as_posix()] = len(content)
        made.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return sizes
