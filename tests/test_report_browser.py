"""The page in a real browser: shown at phone and desktop width, never wider than the screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")

from PIL import Image

from tests.fake_runs import demo, page_of
from tests.fake_studies import batch_size

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (`apt-get install chromium`)")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update"),
)
WRAPPER = """<body><script>
const frames = [390, 1280].map(width => {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 844; frame.src = "report.html"; document.body.append(frame);
  return new Promise(done => frame.onload = () => {
    const root = frame.contentDocument.documentElement, seen = () => [root.clientWidth, root.scrollWidth];
    const closed = seen();
    root.querySelectorAll("details").forEach(one => one.open = true);
    done({closed, open: seen(), text: root.innerText.length});
  });
});
Promise.all(frames).then(all => document.body.innerHTML = "<pre>" + JSON.stringify(all) + "</pre>");
</script></body>"""


def chromium(folder: Path, *arguments: str) -> str:
    """What headless Chromium prints, with a profile of its own that is thrown away."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    batch_size(demo(folder / "runs") / "study-batch_size-quick", seeds=3)
    page_of(folder / "runs")
    return folder


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_chromium_shows_a_page(shown: Path, width: int, height: int) -> None:
    file = shown / f"{width}.png"
    view = (f"--window-size={width},{height}", f"--screenshot={file}")
    chromium(shown, *view, (shown / "report.html").as_uri())
    with Image.open(file) as picture:
        assert picture.size == (width, height)
        pixels = picture.convert("RGB")
        counts = {colour: n for n, colour in pixels.getcolors(width * height)}
    assert len(counts) > 100  # letters have soft edges; an empty page has one colour
    assert counts.get((253, 236, 234), 0) > width * height / 50  # the banner's ground is in the first screen


@pytest.mark.browser
@needs_chromium
def test_chromium_finds_nothing_wider_than_the_screen(shown: Path) -> None:
    (shown / "wrapper.html").write_text(WRAPPER)
    flags = ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"]
    dom = chromium(shown, *flags, (shown / "wrapper.html").as_uri())
    phone, desktop = json.loads(re.search(r"<pre>(.*)</pre>", dom)[1])
    for sizes, width in ((phone, 390), (desktop, 1280)):
        for state in ("closed", "open"):
            assert sizes[state][0] <= width and sizes[state][1] == sizes[state][0], (width, state, sizes)
        assert sizes["text"] > 3_000
