"""The page of an export: what it says, that nothing in it is obeyed, and how it looks in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clusir.export.formats.page import as_markdown, write_page
from tests.browser import Browser

NASTY = '<script>document.title="owned"</script> a | b'
ROW = {"artefact": "model.onnx", "runner": "ort:cpu", "size": "64x64", "batch": 1, "max_abs": 1e-6, "psnr_db": 120.0,
       "flips": 0, "ok": True}  # fmt: skip
REPORT: dict[str, Any] = {
    "graphs": [{"graph": "whole", "file": "model.onnx", "bytes": 7_000_000,
                "passes": [{"name": "FuseHaar", "modified": True, "notes": [NASTY]}]}],
    "weights": [{"file": "model.onnx.data", "bytes": 7_000_000}],
    "parity": [ROW, ROW | {"max_abs": 2e-3, "psnr_db": 50.0, "ok": False}],
}  # fmt: skip


def test_the_worst_of_a_group_is_shown_and_a_miss_stands_out() -> None:
    text = as_markdown("t", REPORT)
    assert "| model.onnx | ort:cpu | 64x64 | 1 | **NO** | 2.0e-03 | 50.0 | 0 |" in text
    assert text.count("| model.onnx | ort:cpu |") == 1
    assert "| `model.onnx.data` | weights | 7.00 |" in text


def test_the_page_shows_markup_and_obeys_none(tmp_path: Path) -> None:
    drawing = tmp_path / "front.svg"
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>')
    write_page(tmp_path / "page.html", f"{NASTY} & more", as_markdown("Title", REPORT, ["## INT8\n\n- one"]), [drawing])
    text = (tmp_path / "page.html").read_text()
    assert "<script>document" not in text
    assert "&lt;script&gt;document" in text
    assert "a | b" in text
    assert "<strong>NO</strong>" in text
    assert "<li>one</li>" in text
    assert '<figure><svg xmlns="http://www.w3.org/2000/svg"' in text
    browser = Browser()
    try:
        browser.open(tmp_path / "page.html")
        assert browser.complaints() == []
        assert browser.run("return document.title").startswith("<script>")
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("return document.querySelectorAll('table').length") == 3
    finally:
        browser.close()
