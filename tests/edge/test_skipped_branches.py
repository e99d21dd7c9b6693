"""When there is no time for branches, the root's own word stands, and the event says what was left out."""

from pathlib import Path

import numpy as np

from edgetag import Tagger
from edgetag.contract.frontend import WINDOW_SAMPLES
from fakes_bundle import write_bundle


def test_a_skipped_branch_is_named_and_not_run(tmp_path: Path) -> None:
    """Engine and voice fire: with branches they refine, without they are `skipped`; nothing else changes."""
    root = [0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.8, 0.1] + [0.2] * 29
    tagger = Tagger.load(write_bundle(tmp_path, root, {"1": [0.7] * 4, "7": [0.6] * 5}))
    samples = np.random.default_rng(0).normal(0, 0.1, WINDOW_SAMPLES).astype(np.float32)
    full, hasty = tagger.analyse(samples), tagger.analyse(samples, with_branches=False)
    assert (full.refined, full.skipped) == (["1", "7"], [])
    assert (hasty.refined, hasty.skipped) == ([], ["1", "7"])
    assert (full.fine["1-1"], hasty.fine["1-1"], hasty.fine["7-1"]) == (0.7, 0.2, 0.2)
    assert (hasty.coarse, hasty.level) == (full.coarse, full.level)
    assert hasty.active == ["1", "7"]
