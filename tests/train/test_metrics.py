"""DCASE 2019 Task 5 figures: equal to the official evaluator's, to a slow reference and to scikit-learn's."""

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import auc, f1_score, precision_recall_curve

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.data.annotations import read_annotations
from edgetag_train.metrics import Level, Scores, Ties, curves, evaluate

SHARED = Path(os.environ.get("EDGETAG_SHARED", Path(__file__).parents[3] / "shared"))
N_TAGS = len(SONYC_UST.ids)
COLUMN = {tag_id: column for column, tag_id in enumerate(SONYC_UST.ids)}
COARSE = slice(0, len(SONYC_UST.coarse_ids))
LEVELS: tuple[Level, ...] = ("coarse", "fine")
TIES: tuple[Ties, ...] = ("official", "threshold")

each_level = pytest.mark.parametrize("level", LEVELS)
each_order = pytest.mark.parametrize("ties", TIES)


# -- the slow reference: one threshold, one recording, one tag at a time --------------------------------


def judge(
    truth: dict[str, bool], predicted: dict[str, bool], other: str, tags: list[str]
) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of one recording in one category."""
    there = [tag for tag in tags if truth[tag]]
    hit = [tag for tag in there if predicted[tag]]
    n_false = sum(predicted[tag] for tag in tags if not truth[tag])
    anything = any(predicted.values())
    if truth.get(other, False):  # the kind is unknown: no complete tag is wrong, any tag is a hit
        tp = len(hit) if hit else int(anything)
        fn = len(there) - len(hit) if there else int(not anything)
        return tp, 0, fn
    other_false = predicted.get(other, False) and not there and not all(predicted[tag] for tag in tags)
    return len(hit), n_false + int(other_false), len(there) - len(hit)


def category_rows(
    truth: np.ndarray, scores: np.ndarray, coarse_id: str, level: Level, taxonomy: Taxonomy
) -> list[tuple[float, int, int, int]]:
    """(threshold, true positives, false positives, false negatives), highest threshold first."""
    ids = [coarse_id] if level == "coarse" else [tag.id for tag in taxonomy.category(coarse_id).fine]
    complete = [tag for tag in ids if not tag.endswith("X")]
    column = taxonomy.index
    columns = [column[tag] for tag in ids]
    recordings = [row for row in range(len(truth)) if not np.isnan(truth[row, columns]).any()]
    seen = {float(scores[row, column[tag]]) for row in recordings for tag in complete}
    rows = []
    for threshold in sorted({score for score in seen if score >= 0.01} | {1.0}, reverse=True):
        counts = np.zeros(3, dtype=int)
        for row in recordings:
            true = {tag: bool(truth[row, column[tag]]) for tag in ids}
            predicted = {tag: bool(scores[row, column[tag]] >= threshold) for tag in ids}
            counts += judge(true, predicted, f"{coarse_id}-X", complete)
        rows.append((threshold, *(int(count) for count in counts)))
    return rows


def area(rows: list[tuple[float, int, int, int]], ties: Ties) -> float:
    """The rows' order is the official evaluator's: it decides what an unstable sort makes of ties."""
    precision = np.array([tp / (tp + fp) if tp else 0.0 for _, tp, fp, _ in rows])
    recall = np.array([tp / (tp + fn) if tp else 0.0 for _, tp, _, fn in rows])
    falling = sorted(range(len(rows)), key=lambda row: -rows[row][0])
    order = np.argsort(recall) if ties == "official" else falling
    return float(auc([0.0, *recall[order], 1.0], [1.0, *precision[order], 0.0]))


def reference(
    truth: np.ndarray, scores: np.ndarray, level: Level, ties: Ties, taxonomy: Taxonomy = SONYC_UST
) -> Scores:
    rows = {
        coarse_id: category_rows(truth, scores, coarse_id, level, taxonomy)
        for coarse_id in taxonomy.coarse_ids
    }
    pooled = []
    for threshold in sorted({row[0] for category in rows.values() for row in category}):
        at_threshold = [min(row for row in category if row[0] >= threshold) for category in rows.values()]
        tp, fp, fn = (sum(row[count] for row in at_threshold) for count in (1, 2, 3))
        pooled.append((threshold, tp, fp, fn))
    class_auprc = {
        coarse_id: area(category, ties)
        for coarse_id, category in rows.items()
        if category[0][1] + category[0][3]
    }
    _, tp, fp, fn = next(row for row in pooled if row[0] >= 0.5)
    found = bool(class_auprc)
    return Scores(
        micro_auprc=area(pooled, ties) if found else np.nan,
        micro_f1=2 * tp / (2 * tp + fp + fn) if found else np.nan,
        macro_auprc=sum(class_auprc.values()) / len(class_auprc) if found else np.nan,
        class_auprc=class_auprc,
        classes_without_positives=[
            coarse_id for coarse_id in taxonomy.coarse_ids if coarse_id not in class_auprc
        ],
    )


# -- data -----------------------------------------------------------------------------------------------


def drawn(
    n_recordings: int = 60, seed: int = 0, present: float = 0.3, steps: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """A random truth and scores in [0.01, 1] that know something of it; `steps` coarse means many ties."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n_recordings, N_TAGS)) < present).astype(float)
    scores = 0.3 * truth + 0.7 * rng.random(truth.shape)
    return truth, np.maximum(np.round(scores * steps) / steps, 0.01)


def assert_same(found: Scores, expected: Scores, tolerance: float = 1e-9) -> None:
    found_fields, expected_fields = asdict(found), asdict(expected)
    assert found_fields.pop("classes_without_positives") == expected_fields.pop("classes_without_positives")
    assert found_fields.pop("class_auprc") == pytest.approx(
        expected_fields.pop("class_auprc"), abs=tolerance, rel=0
    )
    assert found_fields == pytest.approx(expected_fields, abs=tolerance, rel=0, nan_ok=True)


def only(truth_of: dict[str, list[int]], scores_of: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """A truth and scores of which all tags but the named ones are 0."""
    n_recordings = len(next(iter(truth_of.values())))
    truth, scores = np.zeros((2, n_recordings, N_TAGS))
    for tag, column in truth_of.items():
        truth[:, COLUMN[tag]] = column
    for tag, column in scores_of.items():
        scores[:, COLUMN[tag]] = column
    return truth, scores


# -- the official evaluator -------------------------------------------------------------------------------

TIED_RECALLS = np.repeat(np.arange(200.0), 7)[::-1] / 200
GOLDEN_TIES = "6ae7e53148cc91d7"


def orders_ties_as_golden() -> bool:
    """Whether numpy's default argsort leaves ties in the order that the golden figures were made with."""
    order = np.argsort(TIED_RECALLS).astype("<i8")
    return hashlib.sha256(order.tobytes()).hexdigest().startswith(GOLDEN_TIES)


@pytest.fixture(scope="module")
def golden() -> tuple[np.ndarray, np.ndarray, dict[str, dict]]:
    """Verified truth of `validate`, the noisy predictions, and the official evaluator's figures for them."""
    folder = SHARED / "golden" / "metrics"
    if not folder.is_dir():
        pytest.skip(f"no golden figures: {folder} is absent (set EDGETAG_SHARED)")
    labels = read_annotations(SHARED / "sonyc-ust" / "annotations.csv").of_split("validate")
    table = pd.read_csv(folder / "predictions_noisy.csv").set_index("audio_filename")
    columns = [SONYC_UST.tags[tag_id].label for tag_id in SONYC_UST.ids]
    scores = table.loc[list(labels.filenames), columns].to_numpy()
    return labels.binary(), scores, json.loads((folder / "expected_noisy.json").read_text())


def figures(expected: dict) -> Scores:
    return Scores(**expected, classes_without_positives=[])


@pytest.mark.shared
@pytest.mark.skipif(
    not orders_ties_as_golden(),
    reason="numpy's argsort orders ties differently on this processor, so the official evaluator would too",
)
@each_level
def test_official_figures(golden: tuple[np.ndarray, np.ndarray, dict], level: Level) -> None:
    """On SONYC-UST's verified recordings every figure equals the official evaluator's to 1e-9."""
    truth, scores, expected = golden
    assert_same(evaluate(truth, scores, level, SONYC_UST), figures(expected[level]))


@pytest.mark.shared
@each_level
def test_official_figures_on_every_machine(golden: tuple[np.ndarray, np.ndarray, dict], level: Level) -> None:
    """With ties by threshold the golden class and macro AUPRC and F1 hold to 1e-9, micro AUPRC to 5e-4."""
    truth, scores, expected = golden
    found = evaluate(truth, scores, level, SONYC_UST, ties="threshold")
    assert found.micro_auprc == pytest.approx(expected[level]["micro_auprc"], abs=5e-4)
    assert_same(found, figures({**expected[level], "micro_auprc": found.micro_auprc}))


@pytest.mark.shared
@each_level
@each_order
def test_reference_on_real_data(
    golden: tuple[np.ndarray, np.ndarray, dict], level: Level, ties: Ties
) -> None:
    """On real labels, with scores rounded into ties, the figures equal the slow reference's."""
    truth, scores, _ = golden
    truth, scores = truth[::8], np.round(scores[::8], 2)
    assert_same(evaluate(truth, scores, level, SONYC_UST, ties=ties), reference(truth, scores, level, ties))


# -- the slow reference -----------------------------------------------------------------------------------

TIED_SCORES = (0.0, 0.005, 0.01, 0.25, 0.5, 0.75, 1.0)


@st.composite
def truths_and_scores(draw: st.DrawFn, n_tags: int = N_TAGS) -> tuple[np.ndarray, np.ndarray]:
    """Few recordings, many ties, X tags beside complete ones, coarse against fine, some tags unlabelled."""
    shape = (draw(st.integers(0, 6)), n_tags)
    truths = draw(st.sampled_from([(0, 1), (0, 0, 0, 1), (0, 0, 1, np.nan)]))
    values = draw(st.sampled_from([st.sampled_from(TIED_SCORES), st.floats(0, 1)]))
    truth = draw(arrays(np.float64, shape, elements=st.sampled_from(truths)))
    return truth, draw(arrays(np.float64, shape, elements=values))


@given(truths_and_scores(), st.sampled_from(LEVELS), st.sampled_from(TIES))
@settings(deadline=None, max_examples=150)
def test_reference(case: tuple[np.ndarray, np.ndarray], level: Level, ties: Ties) -> None:
    """Counting by sorted scores gives what judging every threshold and recording one by one gives."""
    assert_same(evaluate(*case, level, SONYC_UST, ties=ties), reference(*case, level, ties))


HARBOUR = Taxonomy.from_names(
    "harbour",
    {"1": "ship", "2": "gull", "quay": "quay-work"},
    {
        "1": {"1": "horn", "2": "engine", "X": "other-ship"},
        "2": {"1": "gull"},
        "quay": {"crane": "crane", "X": "other-quay-work", "chain": "chain"},
    },
)


@given(truths_and_scores(len(HARBOUR.ids)), st.sampled_from(LEVELS), st.sampled_from(TIES))
@settings(deadline=None, max_examples=100)
def test_reference_of_another_taxonomy(case: tuple[np.ndarray, np.ndarray], level: Level, ties: Ties) -> None:
    """The challenge's rules hold for any two levels of tags, wherever among its category's the "X" stands."""
    assert_same(evaluate(*case, level, HARBOUR, ties=ties), reference(*case, level, ties, HARBOUR))


@each_level
@each_order
@pytest.mark.parametrize("present", [0.02, 0.3, 0.9])
def test_reference_with_long_ties(level: Level, ties: Ties, present: float) -> None:
    """Recalls tied over more points than a sort keeps in order by accident give the reference's areas."""
    truth, scores = drawn(present=present, steps=40)
    assert_same(evaluate(truth, scores, level, SONYC_UST, ties=ties), reference(truth, scores, level, ties))


@each_level
def test_all_zeros(level: Level) -> None:
    """Scores of 0 open one threshold, 1.0, where nothing is predicted: from (0, 1) to (0, 0) to (1, 0)."""
    truth, scores = drawn()
    found = evaluate(truth, np.zeros_like(scores), level, SONYC_UST)
    assert (found.micro_auprc, found.micro_f1, found.macro_auprc) == (0, 0, 0)


@each_level
@each_order
def test_perfect_scores(level: Level, ties: Ties) -> None:
    """Scores that equal the truth score 1 everywhere, X tags and all."""
    truth, _ = drawn()
    found = evaluate(truth, truth, level, SONYC_UST, ties=ties)
    assert (found.micro_auprc, found.micro_f1, found.macro_auprc) == (1, 1, 1)
    assert set(found.class_auprc.values()) == {1.0}


# -- the X tags ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "predicted", "tp", "fp", "fn"),
    [
        ("1-1", "1-1", 1, 0, 0),
        ("1-1", "1-2", 0, 1, 1),
        ("1-X", "1-X", 1, 0, 0),
        ("1-X", "1-2", 1, 0, 0),  # of this category: that is all the truth knows
        ("1-X", "1-1 1-2 1-X", 1, 0, 0),
        ("1-X", "", 0, 0, 1),
        ("1-1 1-X", "1-1", 1, 0, 0),
        ("1-1 1-X", "1-2", 1, 0, 1),
        ("1-1 1-X", "", 0, 0, 1),
        ("1-1", "1-1 1-X", 1, 0, 0),  # X beside a truth of the category is no false alarm
        ("", "1-X", 0, 1, 0),
        ("", "1-1 1-X", 0, 2, 0),
        ("", "1-1 1-2 1-3 1-X", 0, 3, 0),  # X on top of every complete tag says nothing more
        ("", "3-1", 0, 1, 0),  # a category without X
    ],
)
def test_fine_falls_back_to_coarse(present: str, predicted: str, tp: int, fp: int, fn: int) -> None:
    """Hits, false alarms and misses around an X tag, read from F1 (beside one certain hit elsewhere)."""
    tags = lambda names: {tag: [1] for tag in [*names.split(), "2-1"]}  # noqa: E731
    found = evaluate(*only(tags(present), tags(predicted)), "fine", SONYC_UST)
    assert found.micro_f1 == pytest.approx(2 * (tp + 1) / (2 * (tp + 1) + fp + fn))


def test_thresholds_are_those_of_complete_tags() -> None:
    """A score of X between two scores of complete tags is predicted only from the lower one down."""
    found = evaluate(*only({"2-1": [1]}, {"2-1": [1], "1-X": [0.9], "1-1": [0.1]}), "fine", SONYC_UST)
    assert found.micro_f1 == 1


# -- scikit-learn, where the definitions coincide ---------------------------------------------------------


def opened(scores: np.ndarray) -> np.ndarray:
    """With one certain prediction a tag the curve has no step to (recall 0, precision 0) at threshold 1.0."""
    scores[0, :] = 1.0
    return scores


def sklearn_area(truth: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(truth.ravel(), scores.ravel())
    return float(auc(recall, precision))


@pytest.mark.parametrize("steps", [20, 10**6])
def test_coarse_equals_scikit_learn(steps: int) -> None:
    """Coarse areas in threshold order are those under scikit-learn's curve, class by class and pooled."""
    truth, scores = drawn(steps=steps)
    scores = opened(scores)
    found = evaluate(truth, scores, "coarse", SONYC_UST, ties="threshold")
    classes = {tag: sklearn_area(truth[:, COLUMN[tag]], scores[:, COLUMN[tag]]) for tag in found.class_auprc}
    assert found.class_auprc == pytest.approx(classes, abs=1e-12)
    assert found.micro_auprc == pytest.approx(sklearn_area(truth[:, COARSE], scores[:, COARSE]), abs=1e-12)


@pytest.mark.parametrize("steps", [10, 10**6])
def test_coarse_f1_equals_scikit_learn(steps: int) -> None:
    """Coarse micro F1 is scikit-learn's of "score at least 0.5"."""
    truth, scores = drawn(steps=steps)
    expected = f1_score(truth[:, COARSE], scores[:, COARSE] >= 0.5, average="micro")
    assert evaluate(truth, scores, "coarse", SONYC_UST).micro_f1 == pytest.approx(expected, abs=1e-12)


# -- classes without positives, tags without labels ---------------------------------------------------------


def tags_of(coarse_id: str) -> list[int]:
    """The columns of a category, coarse and fine."""
    return [COLUMN[coarse_id], *(COLUMN[tag.id] for tag in SONYC_UST.category(coarse_id).fine)]


@each_level
def test_class_without_positives(level: Level) -> None:
    """A class that never occurs is named and left out of the macro average; the others keep their areas."""
    truth, scores = drawn()
    everything = evaluate(truth, scores, level, SONYC_UST)
    truth[:, tags_of("4")] = 0
    found = evaluate(truth, scores, level, SONYC_UST)
    assert found.classes_without_positives == ["4"]
    assert found.class_auprc == {tag: x for tag, x in everything.class_auprc.items() if tag != "4"}
    assert found.macro_auprc == pytest.approx(np.mean(list(found.class_auprc.values())))


@each_level
def test_false_alarms_of_a_class_without_positives(level: Level) -> None:
    """False alarms in a class that never occurs lower the micro figures."""
    truth, scores = drawn()
    truth[:, tags_of("4")] = scores[:, tags_of("4")] = 0
    quiet = evaluate(truth, scores, level, SONYC_UST)
    scores[:, tags_of("4")] = 0.9
    loud = evaluate(truth, scores, level, SONYC_UST)
    assert loud.micro_f1 < quiet.micro_f1
    assert loud.micro_auprc < quiet.micro_auprc
    assert loud.macro_auprc == quiet.macro_auprc


@each_level
@pytest.mark.parametrize("value", [0, np.nan])
def test_no_positive_at_all(level: Level, value: float) -> None:
    """Without a positive, or a label, there is nothing to average: NaN, and every class is named."""
    _, scores = drawn()
    found = evaluate(np.full_like(scores, value), scores, level, SONYC_UST)
    assert np.isnan([found.micro_auprc, found.micro_f1, found.macro_auprc]).all()
    assert found.class_auprc == {}
    assert found.classes_without_positives == list(SONYC_UST.coarse_ids)


@each_level
@each_order
def test_unlabelled_recordings_are_left_out(level: Level, ties: Ties) -> None:
    """One unlabelled tag takes its recording out of that category, truth and scores, and out of no other."""
    truth, scores = drawn()
    everything = evaluate(truth, scores, level, SONYC_UST, ties=ties)
    without = evaluate(truth[20:], scores[20:], level, SONYC_UST, ties=ties)
    truth[:20, [COLUMN["7"], COLUMN["7-2"]]] = np.nan
    found = evaluate(truth, scores, level, SONYC_UST, ties=ties)
    assert found.class_auprc == {**everything.class_auprc, "7": without.class_auprc["7"]}


def test_levels_read_only_their_columns() -> None:
    """Coarse figures stand without fine labels and fine scores, and the other way round."""
    truth, scores = drawn()
    n_coarse = COARSE.stop
    for level, unused in (("coarse", slice(n_coarse, None)), ("fine", slice(0, n_coarse))):
        blind_truth, blind_scores = truth.copy(), scores.copy()
        blind_truth[:, unused] = blind_scores[:, unused] = np.nan
        assert evaluate(blind_truth, blind_scores, level, SONYC_UST) == evaluate(
            truth, scores, level, SONYC_UST
        )


# -- curves -------------------------------------------------------------------------------------------------


@given(truths_and_scores(), st.sampled_from(LEVELS))
@settings(deadline=None, max_examples=50)
def test_curves_hold_the_areas(case: tuple[np.ndarray, np.ndarray], level: Level) -> None:
    """The area under each curve is the class AUPRC, recall never falls, and both ends are the challenge's."""
    found = curves(*case, level, SONYC_UST)
    areas = {tag: float(auc(curve.recall, curve.precision)) for tag, curve in found.items()}
    assert areas == pytest.approx(evaluate(*case, level, SONYC_UST, ties="threshold").class_auprc, abs=1e-12)
    for recall, precision in found.values():
        assert (np.diff(recall) >= 0).all()
        assert (recall[0], precision[0], recall[-1], precision[-1]) == (0, 1, 1, 0)


# -- form ---------------------------------------------------------------------------------------------------


@each_level
@each_order
def test_order_of_recordings_does_not_matter(level: Level, ties: Ties) -> None:
    """Rows permuted alike in truth and scores give the same figures, to the bit."""
    truth, scores = drawn(steps=40)
    shuffled = np.random.default_rng(1).permutation(len(truth))
    assert evaluate(truth[shuffled], scores[shuffled], level, SONYC_UST, ties=ties) == evaluate(
        truth, scores, level, SONYC_UST, ties=ties
    )


def test_single_precision_is_welcome() -> None:
    """What a net and a label table give, float32, is scored as the same numbers in float64 are."""
    truth, scores = drawn()
    single = scores.astype(np.float32)
    assert evaluate(truth.astype(np.float32), single, "fine", SONYC_UST) == evaluate(
        truth, single.astype(np.float64), "fine", SONYC_UST
    )


def test_inputs_stay_as_they_are() -> None:
    """Evaluating changes neither truth nor scores."""
    truth, scores = drawn()
    before = truth.copy(), scores.copy()
    evaluate(truth, scores, "fine", SONYC_UST)
    np.testing.assert_array_equal((truth, scores), before)


def test_speed() -> None:
    """Both levels of 443 recordings with distinct scores take well below a second."""
    truth, scores = drawn(n_recordings=443, steps=10**9)
    begin_s = time.perf_counter()
    for level in LEVELS:
        evaluate(truth, scores, level, SONYC_UST)
    assert time.perf_counter() - begin_s < 0.5


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        (np.zeros((3, 36)), np.zeros((3, 36)), "37"),
        (np.zeros((3, N_TAGS)), np.zeros((2, N_TAGS)), "37"),
        (np.zeros(N_TAGS), np.zeros(N_TAGS), "37"),
        (np.full((1, N_TAGS), -1), np.zeros((1, N_TAGS)), "found -1 in row 0, tag 1"),
        (np.full((1, N_TAGS), 0.5), np.zeros((1, N_TAGS)), "found 0.5"),
        (np.zeros((1, N_TAGS)), np.full((1, N_TAGS), np.nan), "found nan in row 0"),
        (np.zeros((1, N_TAGS)), np.full((1, N_TAGS), 1.5), "found 1.5"),
        (np.zeros((1, N_TAGS)), np.full((1, N_TAGS), -2.0), "found -2.0"),
    ],
)
@each_level
def test_refusals(truth: np.ndarray, scores: np.ndarray, message: str, level: Level) -> None:
    """Another shape, votes in place of labels, logits in place of probabilities are refused and named."""
    if level == "fine":
        message = message.replace("tag 1", "tag 1-1")
    with pytest.raises(InputError, match=message):
        evaluate(truth, scores, level, SONYC_UST)


def test_unknown_level_or_order() -> None:
    """A level or an order of ties that does not exist is refused."""
    truth, scores = drawn()
    with pytest.raises(InputError, match="'medium'"):
        evaluate(truth, scores, "medium", SONYC_UST)
    with pytest.raises(InputError, match="'random'"):
        evaluate(truth, scores, "fine", SONYC_UST, ties="random")
