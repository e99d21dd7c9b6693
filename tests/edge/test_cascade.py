"""The cascade's rule: who fires, and whose word counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetag.contract.manifest import Cascade
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.tagging.cascade import Probabilities, fired, run_cascade

THRESHOLD = Cascade("threshold", 0.5)
THRESHOLD_OR_MAX = Cascade("threshold_or_max", 0.5)
BRANCHES = SONYC_UST.branch_ids
probability = st.floats(0, 1)


def branch(id: str) -> list[float]:
    """A branch net's answer that no root in these tests gives: 0.9 for its first tag."""
    return [0.9] + [0.01] * (len(SONYC_UST.category(id).fine) - 1)


def cascade(
    root: list[float], rule: Cascade = THRESHOLD, branches: tuple[str, ...] = BRANCHES
) -> Probabilities:
    return run_cascade(root, branches, branch, taxonomy=SONYC_UST, rule=rule)


def coarse(**scores: float) -> list[float]:
    return [scores.get(f"c{id}", 0.1) for id in SONYC_UST.coarse_ids]


def test_a_branch_fires_strictly_above_the_threshold() -> None:
    """0.5 is not above 0.5; the next float is."""
    assert cascade(coarse(c1=0.5)).refined == []
    assert cascade(coarse(c1=float(np.nextafter(0.5, 1)))).refined == ["1"]


def test_threshold_or_max_always_fires_the_highest() -> None:
    """The paper's rule: with nothing above the threshold the arg-max category still fires."""
    assert cascade(coarse(c5=0.2), THRESHOLD_OR_MAX).refined == ["5"]
    assert cascade(coarse(c5=0.7, c7=0.9), THRESHOLD_OR_MAX).refined == ["5", "7"]


def test_a_fired_branch_replaces_its_fine_probabilities_and_no_others() -> None:
    """Tags of branches that did not fire keep the root's own."""
    own = [0.3] * 29
    found = cascade(coarse(c7=0.8) + own)
    assert [found.fine[f"7-{k}"] for k in "1234X"] == branch("7")
    untouched = [id for id in SONYC_UST.fine_ids if not id.startswith(("7-", "3-", "8-"))]
    assert {found.fine[id] for id in untouched} == {0.3}


def test_a_single_fine_tag_copies_its_category() -> None:
    """Coarse 3 and 8 have one fine tag each, whatever the root says of it."""
    found = cascade(coarse(c3=0.7, c8=0.2) + [0.99] * 29)
    assert (found.fine["3-1"], found.fine["8-1"]) == (0.7, 0.2)


def test_a_coarse_root_leaves_fine_tags_of_silent_branches_absent() -> None:
    """An 8-output root knows no fine tag: only fired branches and single tags are there."""
    found = cascade(coarse(c1=0.9))
    assert set(found.fine) == {"1-1", "1-2", "1-3", "1-X", "3-1", "8-1"}


def test_a_category_without_a_branch_keeps_the_roots_word() -> None:
    """A bundle may lack a branch: its category is never listed as refined."""
    found = cascade(coarse(c1=0.9) + [0.3] * 29, branches=("7",))
    assert found.refined == []
    assert found.fine["1-1"] == 0.3


@pytest.mark.parametrize("n", [0, 7, 9, 29, 36, 38])
def test_a_root_of_another_size_is_refused(n: int) -> None:
    """Only 8 and 37 outputs mean anything."""
    with pytest.raises(ValueError, match=f"{n} outputs"):
        cascade([0.1] * n)


@given(root=st.lists(probability, min_size=37, max_size=37))
def test_laws_for_any_root(root: list[float]) -> None:
    """Coarse is the root's own; refined = above 0.5 with a branch; every tag has one probability."""
    found = cascade(root)
    assert list(found.coarse.values()) == root[:8]
    assert found.refined == [id for id in BRANCHES if found.coarse[id] > 0.5]
    assert list(found.fine) == list(SONYC_UST.fine_ids)


@given(root=st.lists(probability, min_size=8, max_size=8))
def test_threshold_or_max_fires_a_superset(root: list[float]) -> None:
    """The paper's rule fires what the sensor's does, and at most one more."""
    scores = dict(zip(SONYC_UST.coarse_ids, root, strict=True))
    plain, paper = set(fired(scores, THRESHOLD)), set(fired(scores, THRESHOLD_OR_MAX))
    assert plain <= paper
    assert len(paper - plain) <= 1
    assert paper
