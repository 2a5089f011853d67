"""Headless Chromium for tests in Python: playwright-core in Node does the work (runtimes/web/test/drive.mjs)."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import needs

__all__ = ["Browser", "chromium"]

_WEB = Path(__file__).resolve().parent.parent / "runtimes" / "web"


def chromium() -> str:
    """The path of an installed Chromium; skips where there is none."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    return found[0] if found else needs.program("chromium", "browser")


class Browser:
    """One page, 1100 x 900 pixels."""

    def __init__(self) -> None:
        if not (_WEB / "node_modules" / "playwright-core").is_dir():
            needs.skip("browser", "the npm packages are not installed")
        command = [needs.program("node", "browser"), str(_WEB / "test" / "drive.mjs"), chromium()]
        self._node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _call(self, command: str, argument: Any = None) -> Any:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps([command, argument]) + "\n")
        self._node.stdin.flush()
        line = self._node.stdout.readline()
        assert line, f"the browser ended with {self._node.wait(30)}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def open(self, page: Path | str) -> None:
        """Open a file or a URL, and wait until it is loaded."""
        self._call("open", page.as_uri() if isinstance(page, Path) else page)

    def run(self, script: str) -> Any:
        """What the body of a function returns in the page."""
        return self._call("run", script)

    def press(self, *keys: str) -> None:
        """Keys by their names in the DOM, for example ``ArrowRight``."""
        for key in keys:
            self._call("press", key)

    def scheme(self, name: str) -> None:
        """``light`` or ``dark``: what the page is told of the reader's wish."""
        self._call("scheme", name)

    def size(self, width_px: int, height_px: int) -> None:
        self._call("size", [width_px, height_px])

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in the input that the selector names."""
        self._call("upload", [selector, str(path)])

    def wait(self, selector: str, seconds: float = 120) -> None:
        """Until an element that the selector names is visible. Fails after ``seconds``."""
        self._call("wait", [selector, 1000 * seconds])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and what could not be loaded, since the page was opened."""
        found: list[str] = self._call("complaints")
        return found

    def screenshot(self, full_page: bool = False) -> NDArray[np.uint8]:
        """Pixels, [height, width, 3]."""
        png = base64.b64decode(self._call("screenshot", full_page))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def close(self) -> None:
        assert self._node.stdin is not None
        self._node.stdin.close()
        self._node.wait(30)
