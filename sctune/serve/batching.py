"""Images of many requests, decoded by two threads and scored by one, as many together as are waiting.

What is scored together never changes a score (Model.score).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from sctune.deploy.calibration import Prepared
from sctune.deploy.incoming import prepared, scores
from sctune.deploy.model import Model, heat_map_png
from sctune.serve.limits import Limits, RequestError

DECODERS = 2
"""Images that are unfolded at a time: the largest that is allowed takes up to 800 MB while it is (floats)."""
GATHER_S = 0.003
"""How long a batch waits for more images once it has one."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchScore:
    """One scored image; heat_map: PNG, where it was asked for."""

    image: Prepared
    score: float
    heat_map: bytes | None = None


@dataclass(frozen=True)
class _Waiting:
    name: str
    image: Prepared
    with_heat: bool
    answer: asyncio.Future[BatchScore | str]


class Batcher:
    """Scores images for requests of one event loop; `start` before the first, `stop` after the last."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.waiting = 0
        self._decoders = ThreadPoolExecutor(DECODERS, "sctune-decode")
        self._scorer = ThreadPoolExecutor(1, "sctune-score")
        self._ready: asyncio.Queue[_Waiting] = asyncio.Queue()
        # decoded images are larger than their files; so few of them exist at a time
        self._decoded = asyncio.Semaphore(2 * limits.max_batch)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._decoders.shutdown(cancel_futures=True)
        self._scorer.shutdown(cancel_futures=True)

    @property
    def is_full(self) -> bool:
        return self.waiting >= self.limits.waiting

    async def score(self, contents: Sequence[tuple[str, bytes]], with_heat: bool) -> list[BatchScore | str]:
        """The result of each (name, content), or one line about what is wrong with it, which begins with its name.

        Raises RequestError 503 where these would be more than may wait.
        """
        if self.waiting + len(contents) > self.limits.waiting:
            raise RequestError(503, f"{self.waiting} images are waiting already; try again")
        self.waiting += len(contents)
        try:
            # a failure of one, which is a bug, must not leave the others running unseen
            done = await asyncio.gather(*(self._one(*each, with_heat) for each in contents), return_exceptions=True)
        finally:
            self.waiting -= len(contents)
        results: list[BatchScore | str] = []
        for result in done:
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    async def _one(self, name: str, content: bytes, with_heat: bool) -> BatchScore | str:
        async with self._decoded:
            image = await self._in(self._decoders, lambda: prepared(self.model, content, name))
            if isinstance(image, str):
                return image
            answer = asyncio.get_running_loop().create_future()
            self._ready.put_nowait(_Waiting(name, image, with_heat, answer))
            return await answer

    async def _run(self) -> None:
        while True:
            batch = [await self._ready.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    while len(batch) < self.limits.max_batch:
                        batch.append(await self._ready.get())
            try:
                await self._score(batch)
            except Exception as problem:  # a bug: the requests of this batch show it, later ones go on
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(problem)

    async def _score(self, batch: Sequence[_Waiting]) -> None:
        images, names = [one.image for one in batch], [one.name for one in batch]
        found = await self._in(self._scorer, lambda: scores(self.model, images, names))
        scored = list(zip(batch, found, strict=True))
        for one, score in scored:
            if isinstance(score, str):
                _settle(one, score)
            elif not one.with_heat:
                _settle(one, BatchScore(one.image, score))
        hot = [(one, score) for one, score in scored if one.with_heat and isinstance(score, float)]
        if hot:
            pictures = await self._in(self._scorer, lambda: self._pictures([one.image for one, _ in hot]))
            for (one, score), picture in zip(hot, pictures, strict=True):
                _settle(one, BatchScore(one.image, score, picture))

    def _pictures(self, images: Sequence[Prepared]) -> list[bytes]:
        pixels = [image.pixels for image in images]
        return [heat_map_png(*pair) for pair in zip(pixels, self.model.heat_maps(pixels), strict=True)]

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _settle(one: _Waiting, result: BatchScore | str) -> None:
    if not one.answer.done():  # its request may have ended meanwhile
        one.answer.set_result(result)
