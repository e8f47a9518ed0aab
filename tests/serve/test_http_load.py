"""Five hundred requests at once: none fails, and each image has the score that it has alone, to the last bit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from sctune.deploy.model import load_model_folder
from tests.models import noise_png, write_small_model
from tests.serve.http_server import HttpServer

REQUESTS = 500
KINDS = 25
"""Different images; each is sent twenty times."""


async def ask_all(url: str, images: list[bytes]) -> list[list[float]]:
    """Scores of each request, all sent before the first is waited for; every fifth sends two images at once."""
    start = asyncio.Event()

    async def ask(session: aiohttp.ClientSession, number: int) -> list[float]:
        await start.wait()
        if number % 5:
            body: object = images[number % KINDS]
            headers = {"Content-Type": "image/png"}
        else:
            form, headers = aiohttp.FormData(), {}
            for image in (images[number % KINDS], images[(number + 1) % KINDS]):
                form.add_field("files", image, filename="x.png", content_type="image/png")
            body = form
        path = f"{url}/predict?heat_map={'true' if number % 50 == 1 else 'false'}"
        async with session.post(path, data=body, headers=headers) as answer:
            document = await answer.json()
            assert answer.status == 200, document
            return [result["score"] for result in document["results"]]

    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=110)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        asked = [asyncio.create_task(ask(session, number)) for number in range(REQUESTS)]
        await asyncio.sleep(0)
        start.set()
        return await asyncio.gather(*asked)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_five_hundred_at_once(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "model")
    images = [noise_png(seed, spot=seed % 3 == 0) for seed in range(KINDS)]
    model = load_model_folder(folder)
    alone = [float(model.score([model.prepare(image).pixels])[0]) for image in images]
    assert len(set(alone)) == KINDS
    with HttpServer(tmp_path, "--model", folder) as server:
        found = asyncio.run(ask_all(server.url, images))
        for number, scores in enumerate(found):
            wanted = [alone[number % KINDS]] + ([] if number % 5 else [alone[(number + 1) % KINDS]])
            assert scores == wanted, number
        text = server.get("/metrics").body.decode()
        assert f'sctune_requests_total{{path="/predict",status="200"}} {REQUESTS}' in text
        assert "sctune_waiting_images 0" in text
        assert server.text.count("\n") == 1, server.text
