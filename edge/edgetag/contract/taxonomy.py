"""Two-level tag taxonomies, and the one the paper uses: SONYC-UST v1 (8 coarse, 29 fine tags).

Order everywhere in the project: the coarse tags, then the fine tags in taxonomy order. SONYC-UST's ids are
`1`…`8` and `1-1`…`8-1`. A coarse id is up to 16 letters (A–Z) and digits, a fine id its category's, a dash
and as much again; so an id can be part of a topic, a file name, a column and a Home Assistant entity. An id
that ends in `-X` means "of this category, but other or unknown".
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Self

import msgspec

MAX_CATEGORIES = 29
"""A branch each, a root and an embedding in two variants, and golden windows: 63 of a bundle's 64 files."""
MAX_TAGS = 256
MAX_NAME_CHARACTERS = 64
_TAXONOMY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[A-Za-z0-9]{1,16}")
_NOT_IN_NAMES = ',;"/\\+#'
"""What divides tables, lists and topics."""


class Tag(msgspec.Struct, frozen=True):
    """One tag: `id` as on the wire (`7-1`), `name` as in the dataset (`person-or-small-group-talking`)."""

    id: str
    name: str

    @property
    def label(self) -> str:
        """The dataset's column label, e.g. `7-1_person-or-small-group-talking`."""
        return f"{self.id}_{self.name}"

    @property
    def is_other(self) -> bool:
        """True for an "X" tag: the category is known, the kind is not."""
        return self.id.endswith("-X")


class Category(Tag, frozen=True):
    """A coarse tag and the fine tags under it, in taxonomy order (at least one)."""

    fine: tuple[Tag, ...]

    @property
    def single(self) -> Tag | None:
        """The only fine tag, where there is just one: it copies the coarse probability."""
        return self.fine[0] if len(self.fine) == 1 else None


class Taxonomy(msgspec.Struct, frozen=True, dict=True):
    """A named list of categories.

    Raises:
        ValueError: it has no category or more than 29, or more than 256 tags; a category is empty or has
            nothing but an "X" tag; an id is no such id as the module's head says, or is there twice (letters
            in either case are the same); a fine id does not begin with its category's id and a dash; a name
            cannot be printed, is longer than 64 characters, holds one of `,;"/\\+#` or begins or ends with
            a space; two categories, or two fine tags of one, have the same name.
    """

    name: str
    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not _TAXONOMY_NAME.fullmatch(self.name):
            raise ValueError(
                f"the taxonomy's name is {self.name!r}; expected up to 64 letters (A–Z), digits, dots, "
                "dashes and underscores, a letter or digit first"
            )
        if not self.categories:
            raise ValueError(f"taxonomy {self.name!r} has no categories")
        for category in self.categories:
            _check_category(category)
        if twice := _repeated(id.casefold() for id in self.ids):
            raise ValueError(f"taxonomy {self.name!r} uses a tag id twice: {twice!r}")
        for tags in (self.categories, *(category.fine for category in self.categories)):
            if twice := _repeated(tag.name for tag in tags):
                raise ValueError(f"the name {twice!r} is there twice in a place where names tell tags apart")
        if len(self.categories) > MAX_CATEGORIES or len(self.ids) > MAX_TAGS:
            raise ValueError(
                f"taxonomy {self.name!r} has {len(self.categories)} categories and {len(self.ids)} tags; "
                f"at most {MAX_CATEGORIES} and {MAX_TAGS} are possible"
            )

    @classmethod
    def from_names(cls, name: str, coarse: Mapping[str, str], fine: Mapping[str, Mapping[str, str]]) -> Self:
        """Build from the dataset's own two tables (`coarse: {1: engine}`, `fine: {1: {1: small-…}}`)."""
        return cls(
            name,
            tuple(
                Category(id, label, tuple(Tag(f"{id}-{key}", tag) for key, tag in fine[id].items()))
                for id, label in coarse.items()
            ),
        )

    @cached_property
    def coarse_ids(self) -> tuple[str, ...]:
        return tuple(category.id for category in self.categories)

    @cached_property
    def fine_ids(self) -> tuple[str, ...]:
        return tuple(tag.id for category in self.categories for tag in category.fine)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Every id, coarse first: the order of a root net's outputs."""
        return self.coarse_ids + self.fine_ids

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Place of each id in `ids`."""
        return {id: place for place, id in enumerate(self.ids)}

    @cached_property
    def columns(self) -> Mapping[str, slice]:
        """Where the tags of a level, `coarse` or `fine`, stand in `ids`."""
        n_coarse = len(self.coarse_ids)
        return {"coarse": slice(0, n_coarse), "fine": slice(n_coarse, len(self.ids))}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every tag's column label, in the order of `ids`."""
        return tuple(self.tags[id].label for id in self.ids)

    @cached_property
    def tags(self) -> Mapping[str, Tag]:
        """Tag by id, coarse and fine."""
        return {tag.id: tag for category in self.categories for tag in (category, *category.fine)}

    @cached_property
    def branch_ids(self) -> tuple[str, ...]:
        """Categories with more than one fine tag: those a branch net can refine."""
        return tuple(category.id for category in self.categories if category.single is None)

    def category(self, coarse_id: str) -> Category:
        """The category with this id.

        Raises:
            KeyError: no such category.
        """
        return self._by_id[coarse_id]

    @cached_property
    def _by_id(self) -> Mapping[str, Category]:
        return {category.id: category for category in self.categories}


def _check_category(category: Category) -> None:
    if not _KEY.fullmatch(category.id):
        raise ValueError(f"coarse id {category.id!r} is not 1 to 16 letters (A–Z) and digits")
    _check_name(category)
    if not category.fine:
        raise ValueError(f"category {category.label!r} has no fine tag")
    for tag in category.fine:
        of, _, key = tag.id.partition("-")
        if of != category.id:
            raise ValueError(f"fine tag {tag.id!r} does not belong to category {category.id!r}")
        if not _KEY.fullmatch(key):
            raise ValueError(f"fine id {tag.id!r} is not {of!r}, a dash and 1 to 16 letters (A–Z) and digits")
        _check_name(tag)
    if all(tag.is_other for tag in category.fine):
        raise ValueError(f'category {category.label!r} has an "X" tag only; it needs a kind that is known')


def _check_name(tag: Tag) -> None:
    name = tag.name
    if not name.isprintable():
        raise ValueError(f"tag {tag.label!r} cannot be printed")
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or name != name.strip() or set(name) & set(_NOT_IN_NAMES):
        raise ValueError(
            f"tag {tag.id} has the name {name!r}; expected 1 to {MAX_NAME_CHARACTERS} characters, none of "
            f"{' '.join(_NOT_IN_NAMES)} among them, and no space at an end"
        )


def _repeated(texts: Iterable[str]) -> str | None:
    return next((text for text, count in Counter(texts).items() if count > 1), None)


SONYC_UST = Taxonomy.from_names(
    "sonyc-ust-v1",
    {
        "1": "engine",
        "2": "machinery-impact",
        "3": "non-machinery-impact",
        "4": "powered-saw",
        "5": "alert-signal",
        "6": "music",
        "7": "human-voice",
        "8": "dog",
    },
    {
        "1": {
            "1": "small-sounding-engine",
            "2": "medium-sounding-engine",
            "3": "large-sounding-engine",
            "X": "engine-of-uncertain-size",
        },
        "2": {
            "1": "rock-drill",
            "2": "jackhammer",
            "3": "hoe-ram",
            "4": "pile-driver",
            "X": "other-unknown-impact-machinery",
        },
        "3": {"1": "non-machinery-impact"},
        "4": {
            "1": "chainsaw",
            "2": "small-medium-rotating-saw",
            "3": "large-rotating-saw",
            "X": "other-unknown-powered-saw",
        },
        "5": {
            "1": "car-horn",
            "2": "car-alarm",
            "3": "siren",
            "4": "reverse-beeper",
            "X": "other-unknown-alert-signal",
        },
        "6": {
            "1": "stationary-music",
            "2": "mobile-music",
            "3": "ice-cream-truck",
            "X": "music-from-uncertain-source",
        },
        "7": {
            "1": "person-or-small-group-talking",
            "2": "person-or-small-group-shouting",
            "3": "large-crowd",
            "4": "amplified-speech",
            "X": "other-unknown-human-voice",
        },
        "8": {"1": "dog-barking-whining"},
    },
)
"""SONYC-UST v1 (Cartwright et al., DCASE 2019): 23 complete fine tags and 6 "X" tags."""

assert len(SONYC_UST.coarse_ids) == 8
assert len(SONYC_UST.fine_ids) == 29
assert sum(tag.is_other for tag in SONYC_UST.tags.values()) == 6
assert SONYC_UST.branch_ids == ("1", "2", "4", "5", "6", "7")
