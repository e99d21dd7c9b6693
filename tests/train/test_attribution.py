"""Who made the sounds is said of every one of them, by licence."""

from pathlib import Path

import pandas as pd
import pytest

from edgetag.contract.errors import InputError
from edgetag_train.attribution import write_attribution
from fakes_dataset import write_harbour, write_streets

COLUMNS = ["path", "coarse", "fine", "recording_id", "licence", "source_repo"]


def write_manifest(data: Path, **columns: list[str]) -> None:
    rows = [
        ["a.flac", "5_alert-signal", "siren", "1", "CC BY 4.0", "one/repo"],
        ["b.flac", "8_dog", "dog-barking-whining", "2", "CC0 1.0", "another/repo"],
    ]
    (data / "clips").mkdir(parents=True)
    write_streets(data, ("train",))
    pd.DataFrame(rows, columns=COLUMNS).assign(**columns).to_csv(data / "clips" / "manifest.csv", index=False)


def test_everybody_is_named_under_the_licence(tmp_path: Path) -> None:
    """Credits as the table has them, or the recording where it has none; packages; the streets."""
    write_manifest(tmp_path / "data", attribution=["a siren by Ada", ""])
    for name in ("voices-data", "music"):
        (tmp_path / "sounds" / name).mkdir(parents=True)
    write_attribution(tmp_path / "data", [tmp_path / "sounds"], tmp_path / "list.md")
    text = (tmp_path / "list.md").read_text()
    assert "SONYC" in text
    by_heading = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    assert "- a siren by Ada" in by_heading["Clips, CC BY 4.0"]
    assert "- 2" in by_heading["Clips, CC0 1.0"]
    (packages,) = (part for heading, part in by_heading.items() if heading.startswith("Further"))
    assert packages.index("- music") < packages.index("- voices-data")


def test_without_credits_sources_are_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "data")
    write_attribution(tmp_path / "data", [], tmp_path / "list.md")
    assert "- one/repo" in (tmp_path / "list.md").read_text()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "data")
    with pytest.raises(InputError, match="cannot be read"):
        write_attribution(tmp_path / "data", [tmp_path / "nowhere"], tmp_path / "list.md")
    assert not (tmp_path / "list.md").exists()


def test_streets_of_a_citys_own_tags_are_not_said_to_be_sonycs(tmp_path: Path) -> None:
    """Whose they are the list cannot know; it asks."""
    write_harbour(tmp_path)
    (tmp_path / "clips").mkdir()
    pd.DataFrame([["a.flac", "1_ship", "horn", "1", "CC0 1.0", "a/repo"]], columns=COLUMNS).to_csv(
        tmp_path / "clips" / "manifest.csv", index=False
    )
    write_attribution(tmp_path, [], tmp_path / "list.md")
    text = (tmp_path / "list.md").read_text()
    assert "SONYC" not in text
    assert "the tags of harbour" in text
