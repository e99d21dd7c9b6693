"""The coarse-first cascade: the root net hears every window, a branch net only those its category is in."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgetag.contract.manifest import Cascade
from edgetag.contract.taxonomy import Taxonomy

RunBranch = Callable[[str], Sequence[float]]


@dataclass(frozen=True)
class Probabilities:
    """Probability by tag id, in taxonomy order. `refined` names the branches that fired."""

    coarse: dict[str, float]
    fine: dict[str, float]
    refined: list[str]


def run_cascade(
    root: Sequence[float],
    branches: Collection[str],
    run_branch: RunBranch,
    *,
    taxonomy: Taxonomy,
    rule: Cascade,
) -> Probabilities:
    """Refine the root's scores.

    A fired branch replaces its fine probabilities; tags of branches that did not fire keep the root's
    own, or are absent where the root is coarse only. A category's single fine tag copies the category.

    Args:
        root: the root net's probabilities, coarse and fine, or coarse only.
        branches: coarse ids that have a branch net.
        run_branch: a branch net's probabilities, in taxonomy order, by coarse id.

    Raises:
        ValueError: the root has neither of the two numbers of outputs.
    """
    n_coarse = len(taxonomy.coarse_ids)
    if len(root) not in (n_coarse, len(taxonomy.ids)):
        raise ValueError(f"the root has {len(root)} outputs, expected {n_coarse} or {len(taxonomy.ids)}")
    coarse = dict(zip(taxonomy.coarse_ids, root[:n_coarse], strict=True))
    own = dict(zip(taxonomy.fine_ids, root[n_coarse:], strict=False))
    refined = [id for id in fired(coarse, rule) if id in branches]
    fine: dict[str, float] = {}
    for category in taxonomy.categories:
        ids = [tag.id for tag in category.fine]
        if category.single is not None:
            fine[ids[0]] = coarse[category.id]
        elif category.id in refined:
            fine.update(zip(ids, run_branch(category.id), strict=True))
        else:
            fine.update((id, own[id]) for id in ids if id in own)
    return Probabilities(coarse, fine, refined)


def fired(coarse: dict[str, float], rule: Cascade) -> list[str]:
    """Coarse ids that fire: strictly above the threshold, and with `threshold_or_max` the highest one.

    >>> fired({"1": 0.5, "2": 0.51, "3": 0.2}, Cascade("threshold", 0.5))
    ['2']
    >>> fired({"1": 0.1, "2": 0.3, "3": 0.2}, Cascade("threshold_or_max", 0.5))
    ['2']
    """
    highest = max(coarse, key=coarse.__getitem__) if rule.policy == "threshold_or_max" else None
    return [id for id, score in coarse.items() if score > rule.threshold or id == highest]
