"""What messages are put together from."""

from collections.abc import Sequence

N_NAMED = 3


def some(names: Sequence[str], n: int = N_NAMED) -> str:
    """The first `n` names, and how many more there are: `a.wav, b.wav, c.wav and 2 more`."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
