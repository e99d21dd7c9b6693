"""What messages are put together from."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from edgetag.contract.errors import printable
from edgetag.contract.manifest import Manifest

N_NAMED = 3
BUNDLE = "my-bundle"


def some(names: Sequence[str], n: int = N_NAMED) -> str:
    """The first `n` names, and how many more there are: `a.wav, b.wav, c.wav and 2 more`."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def fitted(run: Path, data: Path, embedding: Path | None, cache: Path | None, *, skip_bad: bool) -> str:
    """That a run is finished, and the command that exports it: with what it was fitted with."""
    given = {"--data": data, "--embedding": embedding, "--cache": cache, "--out": BUNDLE}
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    command = shlex.join(["edgetag", "train", "export", str(run), *words, *["--skip-bad"] * skip_bad])
    return printable(f'{run} is finished; next: {command} --licence "…"')


def exported(bundle: Path, manifest: Manifest) -> str:
    """What a bundle holds, how it scores, and the command that tries it."""
    n_nets = _counted(len(manifest.nets), "net")
    size_mb = sum(file.size for file in manifest.files.values()) / 1e6
    command = shlex.join(["edgetag", "replay", "RECORDING", "--bundle", str(bundle)])
    return printable(
        f"{bundle}: {n_nets} in {' and '.join(manifest.variants)}, {size_mb:.1f} MB; "
        f"{_scored(manifest)}; try: {command}"
    )


def _scored(manifest: Manifest) -> str:
    recordings = _counted(manifest.metrics["recordings"], "recording")
    micro_auprc = manifest.metrics["coarse_micro_auprc"]
    if micro_auprc is None:
        return f"no coarse tag in {recordings} to score it by"
    return f"coarse micro AUPRC {micro_auprc:.2f} on {recordings}"


def _counted(n: int, noun: str) -> str:
    """`1 net`, `4 nets`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
