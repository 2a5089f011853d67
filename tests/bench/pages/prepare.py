"""What the benchmark page needs before it measures: every graph written once, each by a child process with a limit.

``python -m tests.bench.pages.prepare FORM NETWORK SIZE THREADS FILE`` is that child. The plain exporter and
torch.compile have been seen to take minutes, or never to end, on networks with routed experts or an FFT; the page then
says after how many seconds they were stopped. What has been written stays in the page's folder, so a page that is
interrupted goes on where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMPILED_FORMS", "Prepared", "failure", "forms_of", "line", "prepare"]

# Forms of a network and what the page calls them.
GRAPH_FORMS = {"plain": "plain export", "dense": "plain export of the densified network", "ours": "ours"}
COMPILED_FORMS = {
    "compiled": "torch.compile of the densified network",
    "compiled-last": "torch.compile of the densified network, channels_last",
}


@dataclass(frozen=True)
class Prepared:
    """One form of a network: ``why`` is empty where it was made, and says otherwise what went wrong. ``file`` holds the
    graph; for torch.compile it is empty, and Inductor's cache beside it holds the kernels."""

    form: str
    file: Path
    why: str

    @property
    def title(self) -> str:
        """What the page calls this form."""
        return {**GRAPH_FORMS, **COMPILED_FORMS}[self.form]


def forms_of(routed: bool, compiled: bool) -> list[str]:
    """The forms that the page shows of a network: ``dense`` where it has routed experts, torch.compile if asked."""
    graphs = [form for form in GRAPH_FORMS if form != "dense" or routed]
    return [*(COMPILED_FORMS if compiled else ()), *graphs]


def prepare(
    name: str, forms: Sequence[str], size: int, threads: int, folder: Path, limit_s: float, compile_limit_s: float
) -> list[Prepared]:
    """Make those of the forms that ``folder`` does not hold yet, and say of all of them what came out.

    ``limit_s`` bounds the plain exporter, ``compile_limit_s`` torch.compile; our own export has no limit.
    """
    place = folder / f"{name}-{size}"
    place.mkdir(parents=True, exist_ok=True)
    limits = {"plain": limit_s, "dense": limit_s, "ours": None}
    made = []
    for form in forms:
        limit = limits.get(form, compile_limit_s)
        # The limit is part of the name: with another one it is tried again.
        file, note = place / f"{form}.onnx", place / f"{form}.failed.{limit or 0:g}s.txt"
        if not file.is_file() and not note.is_file():
            command = [sys.executable, "-m", __name__, form, name, str(size), str(threads), str(file)]
            why = failure(command, limit, cache=folder / "inductor")
            if why:
                note.write_text(why)
        made.append(Prepared(form, file, "" if file.is_file() else note.read_text()))
    return made


def failure(command: Sequence[str], limit_s: float | None, cache: Path) -> str:
    """Run a command and all that it starts, at most ``limit_s`` seconds; say what went wrong, "" if nothing did.

    What went wrong is the command's last line on stderr. ``cache`` is where Inductor keeps what it compiles.
    """
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    # A session of its own: torch.compile starts compilers, which must end with it.
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        said = child.communicate(timeout=limit_s)[1]
    except subprocess.TimeoutExpired:
        return f"did not finish in {limit_s:g} s"
    finally:
        _end(child)
    if child.returncode == 0:
        return ""
    if child.returncode < 0:
        return f"ended by signal {-child.returncode}"
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no message")


def _end(child: subprocess.Popen[str]) -> None:
    """End a child with everything in its session; nothing where it has ended by itself."""
    if child.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
        child.communicate()


def _make(form: str, name: str, size: int, threads: int) -> bytes:
    """One form of a network of the page at ``size`` x ``size``; nothing for torch.compile, which leaves its cache."""
    import torch

    from tests.bench.pages.written import densified, network, our_graph, picture, plain_graph
    from tests.bench.timing import compiled_call

    torch.set_num_threads(threads)
    model, image = network(name), picture(size)
    if form == "plain":
        return plain_graph(model, image)
    dense = densified(name, model)
    if form == "ours":
        return our_graph(name, dense, image)
    if form == "dense":
        return plain_graph(dense, image)
    compiled_call(dense, image, channels_last=form == "compiled-last")()
    return b""


def line(error: BaseException) -> str:
    """The innermost cause, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((s.strip() for s in str(error).splitlines() if s.strip()), "no message")
    return f"{type(error).__name__}: {text[:160]}"


def main(form: str, name: str, size: str, threads: str, file: str) -> int:
    """Write one form to ``file``, whole or not at all."""
    warnings.simplefilter("ignore")
    try:
        written = _make(form, name, int(size), int(threads))
    except Exception as error:
        print(line(error), file=sys.stderr)
        return 1
    part = Path(file).with_suffix(".part")
    part.write_bytes(written)
    part.replace(file)
    return 0


if __name__ == "__main__":
    # PyTorch's own threads may still be at work for a compiled function; nothing here is left to be flushed.
    code = main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
