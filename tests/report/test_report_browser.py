"""The page in a real browser: nothing is cut, every picture loads, on a wide screen and on a narrow one."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# A frame is as narrow as a phone, which a headless window cannot be; the page itself has no script.
PROBE = """<!doctype html><iframe id="page" style="width:{width}px;height:900px;border:0"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  for (const rule of inside.styleSheets[0].cssRules)
    if ({printed} && rule.media) rule.media.mediaText = rule.media.mediaText.replace("print", "screen");
  document.body.append(JSON.stringify({{
    pictures: [...inside.images].map(image => image.complete && image.naturalWidth > 0),
    width: root.clientWidth, scroll: root.scrollWidth,
    tables: [...inside.querySelectorAll(".scroll")].map(box => [box.clientWidth, box.scrollWidth]),
  }}));
}};
frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob("{page}"), letter => letter.charCodeAt(0)));
</script>"""


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        assert "CI" not in os.environ, "the page must be opened in a browser here: install chromium"
        pytest.skip("no chromium to open the page in")
    return found


def browse(chromium: str, page: Path, profile: Path, *flags: str) -> str:
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout


def probe_of(chromium: str, page: Path, folder: Path, width: int, printed: bool = False) -> dict[str, Any]:
    """Return what a browser makes of the page in a frame of this width, or on paper of it."""
    probe = folder / "probe.html"
    encoded = base64.b64encode(page.read_bytes()).decode()
    probe.write_text(PROBE.format(width=width, page=encoded, printed=str(printed).lower()))
    text = browse(chromium, probe, folder / "profile", "--virtual-time-budget=10000", "--dump-dom")
    seen: dict[str, Any] = json.loads(re.search(r'\{"pictures".*\}', text)[0])  # type: ignore[index]
    return seen


@pytest.mark.parametrize("width", [739, 718])  # pixels of a letter's and of A4's paper between the margins
def test_nothing_is_cut_on_paper(chromium: str, page: Path, tmp_path: Path, width: int) -> None:
    seen = probe_of(chromium, page, tmp_path, width, printed=True)
    assert all(scroll <= client for client, scroll in seen["tables"])


@pytest.mark.parametrize("width", [1200, 360])
def test_every_picture_loads_and_nothing_is_wider_than_the_screen(
    chromium: str, page: Path, tmp_path: Path, width: int
) -> None:
    seen = probe_of(chromium, page, tmp_path, width)
    assert seen["pictures"] == [True] * (4 + 3 * 3 * 3)
    assert seen["scroll"] <= seen["width"] == width
    assert all(scroll <= client for client, scroll in seen["tables"])


@pytest.mark.parametrize(("flags", "dark"), [((), False), (("--force-dark-mode",), True)])
def test_the_page_from_disk_in_light_and_dark(
    chromium: str, page: Path, tmp_path: Path, flags: tuple[str, ...], dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    browse(chromium, page, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1200,2400", *flags)
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (2400, 1200)
    assert (pixels[:, :10].mean() < 60) == dark
    assert pixels.std() > 20
