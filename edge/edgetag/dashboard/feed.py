"""Batches for browsers that read at their own speed: who falls behind begins anew with a snapshot.

Everything here belongs to one event loop.
"""

import asyncio
from collections import deque

MAX_READERS = 64
MAX_WAITING = 16  # batches: seconds


class Reader:
    """One browser's place in the feed. It begins behind: a snapshot comes first.

    Args:
        max_waiting: batches kept for it; one more, and it is behind.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[bytes] = deque()
        self._is_behind = True
        self._is_closed = False
        self._news = asyncio.Event()
        self._news.set()

    def offer(self, batch: bytes) -> None:
        """Keep a batch for it, unless a snapshot is due that will hold this, too."""
        if len(self._waiting) >= self._max_waiting:
            self._is_behind = True
            self._waiting.clear()
        if not self._is_behind:
            self._waiting.append(batch)
        self._news.set()

    def close(self) -> None:
        """Nothing more comes."""
        self._is_closed = True
        self._news.set()

    async def next(self) -> bytes | None:
        """The next batch; None when a snapshot, taken from now on, has to come in its place.

        Raises:
            StopAsyncIteration: it is closed.
        """
        while not (self._is_closed or self._is_behind or self._waiting):
            self._news.clear()
            await self._news.wait()
        if self._is_closed:
            raise StopAsyncIteration
        if self._is_behind:
            self._is_behind = False
            return None
        return self._waiting.popleft()


class Feed:
    """Who reads.

    Args:
        max_readers: at most so many.
    """

    def __init__(self, max_readers: int = MAX_READERS) -> None:
        self._max_readers = max_readers
        self._readers: set[Reader] = set()
        self._is_closed = False

    @property
    def n_readers(self) -> int:
        return len(self._readers)

    def enter(self) -> Reader | None:
        """One more; None if there are too many, or it is closed."""
        if self._is_closed or len(self._readers) >= self._max_readers:
            return None
        reader = Reader()
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """It has gone."""
        self._readers.discard(reader)

    def publish(self, batch: bytes) -> None:
        """Offer a batch to all."""
        for reader in self._readers:
            reader.offer(batch)

    def close(self) -> None:
        """Send everybody home."""
        self._is_closed = True
        for reader in self._readers:
            reader.close()
