"""Two-level tag taxonomies, and the one the paper uses: SONYC-UST v1 (8 coarse, 29 fine tags).

Order everywhere in the project: the coarse tags, then the fine tags in taxonomy order. Ids are
`1`…`8` and `1-1`…`8-1`; an id that ends in `-X` means "of this category, but other or unknown".
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Self

import msgspec


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
        ValueError: an id or a name occurs twice, a category is empty, or a fine id does not begin
            with its category's id and a dash.
    """

    name: str
    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError(f"taxonomy {self.name!r} has no categories")
        for category in self.categories:
            if not category.fine:
                raise ValueError(f"category {category.label!r} has no fine tag")
            for tag in category.fine:
                if not tag.id.startswith(f"{category.id}-"):
                    raise ValueError(f"fine tag {tag.id!r} does not belong to category {category.id!r}")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"taxonomy {self.name!r} uses a tag id twice")

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
