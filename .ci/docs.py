"""Builds the site: docs/, the model card, the changelog, and a reference of the public names, made from the packages.

``python .ci/docs.py SITE``. Needs the extra ``docs``. Any warning, for example of a link that leads nowhere, ends it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tree import ROOT, link_packages

# Pages that lie elsewhere in the checkout, and where they stand in the site.
ELSEWHERE = {"clusir/weights/MODEL_CARD.md": "model-card.md", "CHANGELOG.md": "changelog.md",
             "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}  # fmt: skip


def public_names(init: Path) -> list[tuple[str, str]]:
    """(module, name) for every public name of a package, in the order of its ``__init__``."""
    blocks = (node for node in ast.parse(init.read_text("utf-8")).body if isinstance(node, ast.If))
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), alias.name) for node in imports for alias in node.names]


def write_reference(package: Path, folder: Path) -> list[str]:
    """One page a package, in ``folder``; the names of the packages."""
    folder.mkdir()
    written = []
    for init in sorted(_inits(package)):
        names = public_names(init)
        if not names:
            continue
        room = ".".join(("clusir", *init.parent.relative_to(package).parts))
        text = ast.get_docstring(ast.parse(init.read_text("utf-8"))) or ""
        entries = "\n\n".join(f"::: {module}.{name}" for module, name in names)
        (folder / f"{room}.md").write_text(f"# {room}\n\n{text}\n\n{entries}\n", "utf-8")
        written.append(room)
    listed = "\n".join(f"- [{room}]({room}.md)" for room in written)
    start = "# Public names\n\nImport a name from its package: `from clusir.runtimes.images import open_picture`.\n\n"
    (folder / "index.md").write_text(f"{start}{listed}\n", "utf-8")
    return written


def _inits(folder: Path) -> list[Path]:
    """Every ``__init__.py`` below, links followed."""
    here = [folder / "__init__.py"] if (folder / "__init__.py").is_file() else []
    below = (entry for entry in folder.iterdir() if entry.is_dir() and entry.name not in ("cpp", "web", "mobile"))
    return here + [path for entry in below for path in _inits(entry)]


def gather(docs: Path, package: Path) -> None:
    """All pages of the site in ``docs``; links between the checkout's folders become links of the site."""
    shutil.copytree(ROOT / "docs", docs)
    places = {ROOT / source: docs / target for source, target in ELSEWHERE.items()}
    places |= {path: docs / path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*") if path.is_file()}
    for source, target in places.items():
        if source.suffix == ".md":
            link = partial(_link, source=source, target=target, places=places)
            text = source.read_text("utf-8")
            target.write_text(re.sub(r"\]\(([^)#:\s]+)(#[^)]*)?\)", link, text), "utf-8")
    write_reference(package, docs / "api")


def _link(found: re.Match[str], source: Path, target: Path, places: dict[Path, Path]) -> str:
    aimed = (source.parent / found[1]).resolve()
    if aimed not in places:
        return found[0]  # a link out of the site, which mkdocs refuses, or no link: x[index](y) in a piece of code
    return f"]({os.path.relpath(places[aimed], target.parent)}{found[2] or ''})"


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder) / "docs", link_packages(Path(folder)))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(ROOT / ".ci" / "mkdocs.yml"),
                   "-d", str(site)]  # fmt: skip
        places = {"CLUSIR_DOCS": f"{folder}/docs", "CLUSIR_TREE": folder, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, env={**os.environ, **places}).returncode


if __name__ == "__main__":
    sys.exit(main())
