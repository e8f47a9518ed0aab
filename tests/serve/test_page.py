"""The page that images are dropped on, in a headless Chromium."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sctune.deploy.model import load_model_folder
from tests.models import noise_png, write_small_model
from tests.serve.http_server import HttpServer

CHROMIUM = Path("/usr/bin/chromium")
TOKEN = "a-token-for-the-page"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"no {CHROMIUM}; apt-get install chromium"),
]

DROP = """([name, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const moved = new DataTransfer();
  moved.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const told = { dataTransfer: moved, bubbles: true, cancelable: true };
    document.getElementById("drop").dispatchEvent(new DragEvent(kind, told));
  }
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("models") / "detector")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(
        tmp_path_factory.mktemp("page"), "--model", folder, environment={"SCTUNE_SERVE_TOKEN": TOKEN}
    ) as running:
        yield running


def test_dropped_images_show_score_label_and_heat_map(server: HttpServer, folder: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    model = load_model_folder(folder)
    pictures = {f"part {seed}.png": noise_png(seed, 96, spot=seed != 1) for seed in range(8)}
    scores = {name: model.score([model.prepare(content).pixels])[0] for name, content in pictures.items()}
    worst, best = max(scores, key=lambda name: scores[name]), min(scores, key=lambda name: scores[name])
    assert model.labels([scores[worst], scores[best]]) == ["anomalous", "normal"]
    for name in (worst, best):
        (tmp_path / name).write_bytes(pictures[name])
    (tmp_path / "notes.png").write_text("no image")

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        asked, problems = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.on(
            "console", lambda message: problems.append(message.text) if "Content Security" in message.text else None
        )
        page.goto(server.url)
        # the page itself is open, its model is not
        page.get_by_label("This server asks for a token").fill(TOKEN)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#about")).to_contain_text("study first, trial 0")

        page.evaluate(DROP, [worst, base64.b64encode(pictures[worst]).decode()])
        card = page.locator(".card").first
        expect(card.locator(".verdict")).to_have_text("anomalous")
        expect(card).to_contain_text(f"score {scores[worst]:.4f}, threshold {model.threshold.value:.4f}")
        expect(card).to_contain_text("96 x 96 pixels")
        shown = card.locator("img").evaluate_all("(all) => all.map((one) => [one.alt, one.naturalWidth])")
        assert shown == [[worst, 96], [f"heat map of {worst}", 64]]
        page.locator("#files").set_input_files([str(tmp_path / best), str(tmp_path / "notes.png")])
        expect(page.get_by_role("status")).to_have_text("1 normal, 1 not scored.")
        verdicts = page.locator(".card .verdict").all_text_contents()
        assert verdicts == ["not scored", "normal", "anomalous"], "newest first"
        expect(page.locator(".card").first).to_contain_text("not an image that can be read")
        page.screenshot(path=os.environ.get("SCTUNE_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)
        check_accessible(page)

        page.get_by_role("link", name="Interface for programs").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Interface of this server")
        expect(page.get_by_role("heading", name="POST /predict")).to_be_visible()
        browser.close()
    assert problems == []
    assert {re.match(r"\w+:(//[^/]+)?", url)[0] for url in asked} <= {server.url, "blob:http:", "blob:", "data:"}, asked


def check_accessible(page: Any) -> None:
    """Reachable by keyboard, pictures have words, colours have contrast in light and in dark."""
    page.keyboard.press("Tab")
    for _ in range(8):
        if page.evaluate("document.activeElement.id") == "files":
            break
        page.keyboard.press("Tab")
    else:
        pytest.fail("no key reaches the choice of files")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("[...document.images].every((one) => one.alt)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for place in (".soft", ".normal .verdict", ".anomalous .verdict", ".card h3"):
            pair = page.evaluate(
                """(place) => { const one = document.querySelector(place), card = one.closest(".card") || document.body;
                return [getComputedStyle(one).color, getComputedStyle(card).backgroundColor]; }""",
                place,
            )
            assert contrast(*pair) >= 4.5, (scheme, place, pair)


def contrast(one: str, other: str) -> float:
    """Of two colours `rgb(r, g, b)`, as WCAG 2 defines it: 1 to 21."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = np.array([int(number) for number in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
