"""The outbox's book: which messages wait, and where each of them is. It knows no thread and no disk.

```
take ── fresh ── portion … wrote ── on the disk ─┐
          └─────────────────────────── give ─────┴─ given ─┬─ settle ── settled ── portion … wrote ── gone
                                         ↑                 │
                                         └──── rewind ─────┘
```
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from edgetag.delivery.rows import Stock, Stored
from edgetag.delivery.sink import Forwarded, Settled

_PORTION = 500


class Portion(NamedTuple):
    """What is written at once: new messages, what became of others, ids to keep, what else to count."""

    new: list[Stored]
    settled: list[Settled]
    keep: set[int]
    totals: Counter[str]


class _Outcome(NamedTuple):
    settled: Settled
    n_bytes: int


class Backlog:
    """Messages that are not settled, and settled ones that the disk still has.

    Args:
        max_bytes: most bytes of messages that are not written; the oldest go when there are more, but neither
            those that are on their way nor those that are being written.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.next_id = 1
        self._disk = Stock()
        self._fresh: dict[int, Stored] = {}  # not written yet, in order
        self._fresh_bytes = 0
        self._writing: set[int] = set()  # of them
        self._given: dict[int, Stored] = {}  # since the last rewind, and not settled
        self._settled: dict[int, _Outcome] = {}  # and not gone yet
        self._unsaved = Counter[str]()  # totals that the disk does not have

    @property
    def depth(self) -> int:
        """Messages that are not settled."""
        return self._disk.n + len(self._fresh) - len(self._settled)

    @property
    def n_bytes(self) -> int:
        """Of their payloads."""
        settled_bytes = sum(outcome.n_bytes for outcome in self._settled.values())
        return self._disk.n_bytes + self._fresh_bytes - settled_bytes

    @property
    def totals(self) -> Counter[str]:
        """What has become of others: `dropped`, `refused`; and how often the disk was `damaged`."""
        return self._disk.totals + self._unsaved

    @property
    def n_to_write(self) -> int:
        """Messages that are to be written, and settled ones that are to go."""
        return len(self._fresh) + len(self._settled)

    # -- messages ----------------------------------------------------------------------------------------

    def take(self, kind: Forwarded, since_s: float, payload: bytes) -> None:
        """A new message."""
        self._fresh[self.next_id] = Stored(self.next_id, kind, since_s, payload)
        self._fresh_bytes += len(payload)
        self.next_id += 1
        while self._fresh_bytes > self._max_bytes and (oldest := next(self._expendable(), None)) is not None:
            self._forget(oldest)
            self._unsaved["dropped"] += 1

    def give(self, messages: Iterable[Stored]) -> list[Stored]:
        """Those of them whose turn it is: neither settled nor given since the last rewind."""
        given = [it for it in messages if it.id not in self._given and it.id not in self._settled]
        self._given.update((message.id, message) for message in given)
        return given

    def give_fresh(self, limit: int) -> list[Stored]:
        """The oldest that are not written."""
        due = (it for it in self._fresh.values() if it.id not in self._given and it.id not in self._settled)
        return self.give(list(islice(due, limit)))

    def settle(self, settled: Settled) -> None:
        """What became of a message that was given; nothing, if it was not."""
        if (message := self._given.pop(settled.id, None)) is not None:
            self._settled[settled.id] = _Outcome(settled, len(message.payload))
            self._unsaved["refused"] += bool(settled.refusal)

    def rewind(self) -> None:
        """Nothing has been given."""
        self._given.clear()

    def _expendable(self) -> Iterator[int]:
        return (
            id
            for id in self._fresh
            if not any(id in them for them in (self._writing, self._given, self._settled))
        )

    def _forget(self, id: int) -> None:
        self._fresh_bytes -= len(self._fresh.pop(id).payload)

    # -- the disk ----------------------------------------------------------------------------------------

    def portion(self) -> Portion | None:
        """What is to be written next; None if there is nothing. Then `wrote` is to be called, or `failed`."""
        self._forget_settled()
        new = list(islice(self._fresh.values(), _PORTION))
        there = (outcome.settled for id, outcome in self._settled.items() if id not in self._fresh)
        settled = list(islice(there, _PORTION))
        if not (new or settled or self._unsaved.total()):
            return None
        self._writing = {message.id for message in new}
        return Portion(new, settled, set(self._given), Counter(self._unsaved))

    def wrote(self, portion: Portion, disk: Stock) -> bool:
        """It is on the disk, whose stock is this now. Whether there are more messages to write."""
        for id in self._writing:
            self._forget(id)
        for settled in portion.settled:
            del self._settled[settled.id]
        self._unsaved -= portion.totals
        self._writing, self._disk = set(), disk
        return bool(self._fresh)

    def failed(self) -> None:
        """The portion is not on the disk."""
        self._writing = set()

    def found(self, disk: Stock) -> None:
        """This is what was on the disk when it was opened."""
        self._disk = disk

    def lost(self) -> int:
        """Of what was on the disk only what is on its way is left: to be written anew. How many are lost."""
        n_before, totals = self.depth, self._disk.totals
        self._fresh = dict(sorted((self._given | self._fresh).items()))
        self._fresh_bytes = sum(len(message.payload) for message in self._fresh.values())
        self._settled = {id: outcome for id, outcome in self._settled.items() if id in self._fresh}
        self._disk, self._writing = Stock(), set()
        n_lost = n_before - self.depth
        self._unsaved += totals + Counter(damaged=1, dropped=n_lost)
        return n_lost

    def _forget_settled(self) -> None:
        """What has arrived before it was written need not be; what was refused is set aside once it is."""
        for id in self._fresh.keys() & self._settled.keys():
            if not self._settled[id].settled.refusal:
                self._forget(id)
                del self._settled[id]
