"""Keeps the unfinished pictures of a stream while the finished one is still on its way.

Rule: a preview is worth nothing beside the picture that is paid for. What is no picture, or finds no room, is said in the
diagnostics and left out; nothing here ends an attempt.
"""

import logging
from functools import partial

import trio

from daemon import decisions
from daemon.ledger import Ledger, RunBlocking
from eventlog.errors import EventLogError
from eventlog.events import AttemptStarted, PartialReceived
from eventlog.values import ImageRequest, Picture
from tools import openai_api
from tools.errors import FileFailed
from tools.pictures import BadPicture
from tools.store import Store
from tools.streaming import EventParser, StreamEvent

POST_SECONDS_MAX = 5.0  # a ledger that is full of pending facts; the stream is not kept waiting for it
logger = logging.getLogger(__name__)


class Previews:
    """Of one attempt. `hear` is called with every piece of its stream, in order."""

    def __init__(self, ledger: Ledger, store: Store, request: ImageRequest, started: AttemptStarted, run_blocking: RunBlocking):
        self._ledger = ledger
        self._store = store
        self._started = started
        self._run_blocking = run_blocking
        self._parser = EventParser()
        self._left = request.partial_images * request.count  # a server that sends more does not fill the store
        self._awaited = request.count

    async def hear(self, piece: bytes) -> bool:
        """Whether all finished pictures are there."""
        for event in self._parser.feed(piece):
            match await self._run_blocking(partial(openai_api.kind, event)):
                case "completed":
                    self._awaited -= 1
                case "partial_image" if self._left:
                    await self._keep(event)
        return self._awaited <= 0

    async def _keep(self, event: StreamEvent) -> None:
        try:
            received = await self._run_blocking(partial(self._stored, event))
            self._left -= 1
            with trio.move_on_after(POST_SECONDS_MAX):
                await self._ledger.post(decisions.receive_partial(received))
        except (BadPicture, FileFailed, EventLogError) as exc:
            logger.warning("a preview could not be kept", extra={"job": self._started.job, "why": str(exc)})

    def _stored(self, event: StreamEvent) -> PartialReceived:
        """Blocking."""
        found = openai_api.read_partial(event)
        blob = self._store.put(found.image.data)
        image = found.image
        return PartialReceived(
            job=self._started.job,
            attempt=self._started.attempt,
            index=found.partial_index,
            picture=Picture(
                sha256=blob.sha256, size_bytes=blob.size_bytes, width=image.width, height=image.height, format=image.format
            ),
        )
