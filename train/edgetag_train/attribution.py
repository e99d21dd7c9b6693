"""Who made the sounds that a bundle was trained on: the list that their licences ask for."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.data.dataset import read_dataset_taxonomy
from edgetag_train.data.sounds import read_manifest
from edgetag_train.files import writing

_STREETS = (
    "The street recordings: SONYC Urban Sound Tagging (SONYC-UST), Cartwright et al., New York University, "
    "CC BY 4.0."
)
_OWN_STREETS = "The street recordings: those that were annotated with the tags of {}. Say here who made them."


def write_attribution(data: Path, sounds: Sequence[Path], out: Path) -> None:
    """Write a list in Markdown: the street recordings, the clips by licence, the folders of further sounds.

    Args:
        data: holds the annotation table and `clips/`, whose manifest may have a column `attribution`.
        sounds: folders of further sounds, as mixtures were made of.
        out: the file.

    Raises:
        InputError: a table, the taxonomy or a folder cannot be read.
        OutputError: the file cannot be written.
    """
    taxonomy = read_dataset_taxonomy(data)
    streets = _STREETS if taxonomy == SONYC_UST else _OWN_STREETS.format(taxonomy.name)
    lines = ["# Who made what the bundle was trained on", "", streets, ""]
    for licence, names in sorted(_clips(data / "clips", taxonomy).items()):
        lines += [f"## Clips, {licence}", "", *_items(names), ""]
    for folder in sounds:
        lines += ["## Further sounds, by package; each one's licences are in its `copyright`", ""]
        lines += [*_items(_groups(folder)), ""]
    with writing(out):
        out.write_text("\n".join(lines), encoding="utf-8")


def _clips(folder: Path, taxonomy: Taxonomy) -> dict[str, set[str]]:
    """Credits by licence, of the clips that training hears."""
    is_heard = read_manifest(folder, taxonomy).split == "train"
    table = pd.read_csv(folder / "manifest.csv", dtype=str).fillna("")[is_heard]
    names = table["attribution"] if "attribution" in table else table["source_repo"]
    found: dict[str, set[str]] = defaultdict(set)
    for licence, name, recording in zip(table.licence, names, table.recording_id, strict=True):
        found[licence].add(name or recording)
    return found


def _groups(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from error


def _items(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in sorted(texts)]
