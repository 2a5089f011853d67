"""--report: one self-contained page; what it says, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.report.collect import ReportWriter
from clusir.runtimes.restore.explain import account
from clusir.spec import ModelSpec
from tests.browser import Browser

LABELS = ("noise", "jpeg", "blur", "<i>rain</i>")
SPEC = ModelSpec(clusters=(4, 4), experts=(4, 4), cluster_labels=(LABELS, LABELS))
POSTERIOR = np.array([0.7, 0.1, 0.1, 0.1, 0.9, 0.1, 0.0, 0.0])
GATE = np.array([0, 0.8, 0, 0, 0.6, 0, 0, 0])
ACCOUNT = account(POSTERIOR, GATE, SPEC)
NASTY = 'a <script>document.title="owned"</script> "name" & more.png'


def _picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width]
    after = np.stack([x % 256, y % 256, (x + y) % 256], axis=2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(-30, 30, after.shape)
    return np.clip(after + noise, 0, 255).astype(np.uint8), after


def _writer(**options: Any) -> ReportWriter:
    writer = ReportWriter("Restored <pictures>", {"backend": "ort:cpu"}, "a machine", **options)
    for i, (name, size) in enumerate({"b.png": (300, 400), NASTY: (40, 40), "a.png": (900, 1200)}.items()):
        times = {"decode": 2.0 + i, "infer": 1500.0 * (i + 1), "encode": 8.0}
        writer.add(name, *_picture(*size), account=ACCOUNT, timings_ms=times, note="a note")
    writer.add_failure("broken.jpg", "broken.jpg: truncated <here>")
    return writer


class _Elements(HTMLParser):
    """Every start tag with its attributes; raises nothing, so balance is checked by hand."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _writer().write(tmp_path_factory.mktemp("report") / "deep" / "report.html")


def test_page_is_well_formed_and_asks_nothing_of_the_network(report: Path) -> None:
    text = report.read_text()
    page = _Elements(text)
    assert page.open == []
    own = re.sub(r"<script>.*?</script>|base64,[A-Za-z0-9+/=]+", "", text, flags=re.S)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", own)
    assert all((a["src"] or "").startswith("data:image/webp;base64,") for a in page.of("img"))
    assert not page.of("link")
    assert "default-src 'none'" in str(page.of("meta"))
    assert [p.name for p in report.parent.iterdir()] == ["report.html"]


def test_names_are_text_not_markup(report: Path) -> None:
    text = report.read_text()
    assert "<script>document" not in text
    assert "<i>rain" not in text
    assert "&lt;script&gt;document" in text
    assert "truncated &lt;here&gt;" in text


def test_every_picture_has_its_sliders_labels_and_figures(report: Path) -> None:
    page = _Elements(report.read_text())
    # a.png is large enough for a second slider, which shows a part of it pixel for pixel.
    assert len(page.of("input")) == 4
    assert all(a["aria-label"] for a in page.of("input"))
    assert all(a["alt"] for a in page.of("img"))
    text = report.read_text()
    assert text.index('id="p0"><header><h2>a &lt;') < text.index('id="p1"><header><h2>a.png')
    assert "1200 x 900 px" in text
    assert "noise</dt>" in text
    assert "level 1, expert 1</dt>" in text
    assert "3.00 s" in text
    assert "Not restored: broken.jpg" in text


def test_thumbnails_are_bounded_and_show_the_picture(report: Path) -> None:
    for attributes in _Elements(report.read_text()).of("img"):
        data = base64.b64decode((attributes["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert max(image.size) <= 900
            assert len(np.unique(np.asarray(image))) > 50
    assert report.stat().st_size < 3_000_000


def test_pictures_beyond_the_budget_keep_their_figures(tmp_path: Path) -> None:
    text = _writer(budget_mb=0.001).write(tmp_path / "r.html").read_text()
    page = _Elements(text)
    assert len(page.of("img")) == 2  # the first fills the budget
    assert text.count("reached its size limit") == 2
    assert text.count("<h3>Recognised</h3>") == 3


def test_pictures_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    text = _writer(limit=2).write(tmp_path / "r.html").read_text()
    assert len(re.findall(r'class="card picture', text)) == 2
    assert "<b>3</b><span>restored</span>" in text
    assert "<b>1</b><span>failed</span>" in text
    assert "2 more pictures" in text


def test_thinned_copy_of_a_huge_picture_names_the_real_size(tmp_path: Path) -> None:
    writer = ReportWriter()
    writer.add("huge.png", *_picture(500, 1000), size=(10000, 5000))
    text = writer.write(tmp_path / "r.html").read_text()
    assert "10000 x 5000 px" in text
    assert "shrunk to 9 %" in text
    assert "pixel for pixel" not in text


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ImageError, match="before is"):
        ReportWriter().add("x", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8))


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be written"):
        ReportWriter().write(tmp_path / "file" / "r.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.close()


def test_keyboard_moves_the_slider_and_the_picture_follows(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.run("document.querySelector('.slider input').focus()")
    browser.press(*["ArrowRight"] * 5)
    state = "const s = document.querySelector('.slider'); const i = s.querySelector('input');"
    clip = "getComputedStyle(s.querySelector('.before')).clipPath"
    assert browser.run(f"{state} return [i.value, s.style.getPropertyValue('--x')]") == ["55", "55%"]
    assert "55 % before" in browser.run(f"{state} return i.getAttribute('aria-valuetext')")
    assert browser.run(f"{state} return getComputedStyle(s).outlineStyle") == "solid"
    before = browser.run(f"{state} return {clip}")
    browser.press("Home")
    assert browser.run(f"{state} return i.value") == "0"
    assert browser.run(f"{state} return {clip}") != before


def test_page_is_quiet_fits_and_loads_nothing(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.complaints() == []
    assert browser.run("return document.title") == "Restored <pictures>"
    loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_table_sorts_both_ways(browser: Browser, report: Path) -> None:
    browser.open(report)
    press = "document.querySelectorAll('thead button')[4].click();"
    names = "return [...document.querySelectorAll('.card > table tbody tr td:last-child')].map(c => +c.dataset.value)"
    up, down = browser.run(press + names), browser.run(press + names)
    assert up == sorted(up)
    assert down == up[::-1]
    assert browser.run("return document.querySelectorAll('thead th')[4].getAttribute('aria-sort')") == "descending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(browser: Browser, report: Path, scheme: str) -> None:
    browser.scheme(scheme)
    browser.open(report)
    script = """
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                              return [...canvas.getImageData(0, 0, 1, 1).data]; };
      const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
        return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
      const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
      document.querySelectorAll('details').forEach(d => d.open = true);
      let worst = [99, ''];
      for (const e of document.querySelectorAll('h1,h2,h3,p,span:not(.tag):not(.bar),b,dt,dd.value,th,td,td small,a,figcaption,summary,caption')) {
        if (!e.textContent.trim() || e.classList.contains('skip')) continue;
        const [x, y] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
        const ratio = (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
        if (ratio < worst[0]) worst = [ratio, e.tagName + ' ' + e.className + ': ' + e.textContent.slice(0, 40)];
      }
      return worst;"""  # noqa: E501
    ratio, where = browser.run(script)
    assert ratio >= 4.5, where  # WCAG AA for text
    mean = browser.screenshot().mean()
    assert mean > 150 if scheme == "light" else mean < 110


def test_the_page_names_families_where_there_is_evidence_of_them(tmp_path: Path) -> None:
    spec = replace(SPEC, families=("noise", "low_light"), evidence_thresholds=(0.1, 0.9))
    writer = ReportWriter()
    for name, evidence in (("dark.png", (0.25, 0.75)), ("plain.png", (0.0, 0.04))):
        told = account(POSTERIOR, GATE, spec, np.array(evidence, np.float32))
        writer.add(name, *_picture(40, 50), account=told)
    text = writer.write(tmp_path / "report.html").read_text()
    assert '<td class="words">low light 0.75, noise 0.25</td>' in text
    assert '<td class="words">nothing</td>' in text
    assert "jpeg 0.10" not in text
    assert "<h3>Recognised</h3>nothing" in text
