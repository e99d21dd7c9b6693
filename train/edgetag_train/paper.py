"""What was published of the paper's systems, each figure with its source (`paper_table4.yaml`)."""

from pathlib import Path

import msgspec
import yaml

from edgetag.contract.errors import InputError

TABLE_4 = Path(__file__).with_name("paper_table4.yaml")


class LevelFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures at one level, in [0, 1]; None where no source at hand gives one."""

    micro_auprc: float | None = None
    micro_f1: float | None = None
    macro_auprc: float | None = None


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A system's published figures.

    Attributes:
        data: what they were measured on, in words.
        source: where they are from.
        recordings: how many recordings that is, where the source says so.
        name: what the system is called, for points of reference.
    """

    data: str
    source: str
    coarse: LevelFigures = LevelFigures()
    fine: LevelFigures = LevelFigures()
    recordings: int | None = None
    name: str = ""


class Table4(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Published figures.

    Attributes:
        note: what they are, in a sentence for the reader.
        systems: the paper's systems by slug (`cnn_vggish1`).
        references: points of reference measured on other data.
    """

    note: str
    systems: dict[str, Published]
    references: list[Published] = []


def read_table4(path: Path = TABLE_4) -> Table4:
    """The published figures.

    Raises:
        InputError: the file is unreadable, or holds a key or a value that does not belong there.
    """
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), Table4)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise InputError(f"published figures {path}: {error}") from error
