"""Begin a run, or go on with one: what a run directory must agree on with who writes to it."""

import fcntl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import torch

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.data.training import TrainingData
from edgetag_train.embedding import Embedding
from edgetag_train.files import writing
from edgetag_train.fit.loop import Record
from edgetag_train.fit.run import ROOT, Run, check_taxonomy, checkpoints, read_run
from edgetag_train.recipe import Recipe
from edgetag_train.taxonomy import FILE, described, identity, taxonomy_yaml


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a run directory against other processes that would fit in it.

    Raises:
        InputError: another one does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is fitting in {out}; wait for it, or stop it") from None
        yield


def provenance(
    data: TrainingData, embedding: Embedding | None, device: torch.device | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """What a run is begun with, besides its recipe."""
    return {
        "edgetag": version("edgetag"),
        "git": git_commit(Path(__file__)),
        "torch": str(torch.__version__),
        "device": str(device or "cpu"),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": list(overrides),
        "taxonomy": identity(data.taxonomy),
        "data": data.about,
        "embedding": embedding
        and {"kind": embedding.kind, "source": embedding.source, "sha256": embedding.sha256["fp32"]},
    }


def git_commit(source: Path) -> str | None:
    """The commit of the checkout that a source file is part of, `-dirty` where code was changed since.

    None where the file is in no checkout, or only lies in one (an installation inside of another project's).
    """
    try:
        _git(source, "ls-files", "--error-unmatch", source.name)
        changed = _git(source, "status", "--porcelain", "--untracked-files=no", ":(top)*.py", ":(top)*.yaml")
        return _git(source, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(source: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(source.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def check_start(recipe: Recipe, taxonomy: Taxonomy, out: Path, *, root: Path | None, resume: bool) -> None:
    """Refuse what `fit_system` would refuse, before hours are spent on features.

    Raises:
        InputError: `out` holds another run, or one while `resume` is false; `root` is no such run.
        OutputError: `out` cannot be written.
    """
    with writing(out):
        _found(out, recipe, taxonomy, resume=resume)
        TemporaryFile(dir=out).close()
    if root is not None:
        _matching_root(root, recipe, taxonomy)


def _found(out: Path, recipe: Recipe, taxonomy: Taxonomy, *, resume: bool) -> Run | None:
    """The run to go on with in `out`, None where there is none yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "recipe.json").exists():
        return None
    found = read_run(out)
    if not resume:
        raise InputError(f"{out} holds a run already; go on with it with --resume, or choose another folder")
    if found.recipe != recipe:
        raise InputError(f"{out} holds a run of another recipe; choose another folder")
    if found.taxonomy != taxonomy:
        raise InputError(
            f"{out} was begun with the tags of {described(found.taxonomy)}, the data has those of "
            f"{described(taxonomy)}; choose another folder"
        )
    return found


def claim(out: Path, recipe: Recipe, taxonomy: Taxonomy, stated: dict[str, Any], *, resume: bool) -> Run:
    """Begin a run in `out`, or find the one to go on with.

    What may not differ: the recipe, the taxonomy, the data, the embedding.
    """
    recipe.check(taxonomy)
    found = _found(out, recipe, taxonomy, resume=resume)
    if found is None:
        (out / FILE).write_bytes(taxonomy_yaml(taxonomy))
        (out / "provenance.json").write_bytes(msgspec.json.format(msgspec.json.encode(stated)))
        (out / "recipe.json").write_bytes(msgspec.json.format(msgspec.json.encode(recipe)))
        return Run(out, recipe, taxonomy, stated)
    for what in ("data", "embedding"):
        if found.provenance[what] != stated[what]:
            raise InputError(f"{out} was begun with other {what}; choose another folder")
    return found


def _matching_root(other: Path, recipe: Recipe, taxonomy: Taxonomy) -> Run:
    """Another run, if its root net is the one that this recipe would train."""
    source = read_run(other)
    check_taxonomy(source, taxonomy)
    for key in ("seed", "data", "fusion", "root"):
        if getattr(source.recipe, key) != getattr(recipe, key):
            raise InputError(f"{other} has another {key} than this recipe; its root cannot be taken")
    for name in checkpoints(recipe, ROOT):
        if not source.net_path(name).exists():
            raise InputError(f"{other} holds no {name}.pt; let it finish first")
    return source


def take_root(run: Run, other: Path) -> None:
    """Copy another run's root net, if it is the one that this run would train."""
    source = _matching_root(other, run.recipe, run.taxonomy)
    for what in ("data", "embedding"):
        if source.provenance[what] != run.provenance[what]:
            raise InputError(f"{other} was run on other {what}; its root cannot be taken")
    for name in checkpoints(run.recipe, ROOT):
        run.net_path(name).write_bytes(source.net_path(name).read_bytes())
    (run.path / f"{ROOT}.partial").unlink(missing_ok=True)
    try:
        history = [line for line, note in _notes(other / "history.jsonl") if note.net == ROOT]
    except OSError as error:
        raise InputError(f"{other / 'history.jsonl'} cannot be read ({error.strerror})") from error
    forget_epochs_after(run.path / "history.jsonl", ROOT, 0)
    with (run.path / "history.jsonl").open("ab") as file:
        file.writelines(history)


def note_epoch(history: Path, net: str, record: Record) -> None:
    """Add a line to a history."""
    with history.open("ab") as file:
        file.write(msgspec.json.encode({"net": net} | record) + b"\n")


def forget_epochs_after(history: Path, net: str, epoch: int) -> None:
    """Epochs noted but not saved will be trained, and noted, again."""
    if not history.exists():
        return
    kept = [line for line, note in _notes(history) if note.net != net or note.epoch <= epoch]
    unfinished = history.with_suffix(".tmp")
    unfinished.write_bytes(b"".join(kept))
    unfinished.replace(history)


class _Note(msgspec.Struct, frozen=True):
    net: str
    epoch: int


def _notes(history: Path) -> list[tuple[bytes, _Note]]:
    """The lines of a history and which epoch each is of; a last one that was torn off is left out."""
    lines = history.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        return [(line, msgspec.json.decode(line, type=_Note)) for line in lines]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{history} is damaged ({error}); restore it, or begin another run") from error
