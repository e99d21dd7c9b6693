"""From sounds and a teacher to an embedding folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.dataset import read_dataset_taxonomy
from edgetag_train.data.store import sha256
from edgetag_train.embedding import (
    MANIFEST_NAME,
    N_CALIBRATION_WINDOWS,
    NAMES,
    Embedding,
    export_embedding,
)
from edgetag_train.files import writing
from edgetag_train.fit.stopping import stop_on_signals
from edgetag_train.folder import check_room
from edgetag_train.teaching.corpus import Corpus, make_corpus, to_logmel
from edgetag_train.teaching.lesson import Lesson, Teaching
from edgetag_train.teaching.teacher import Teacher

log = structlog.get_logger("edgetag.train")
KIND = "patchnet"


def teach(
    data: Path,
    sounds: Sequence[Path],
    teacher: Path,
    out: Path,
    cache: Path,
    *,
    mixtures: int,
    epochs: int,
    seed: int,
    skip_bad: bool = False,
) -> Embedding:
    """Teach a `PatchNet` and write its embedding folder. What was begun before is gone on with.

    Args:
        data: holds `clips/` and the street recordings; the training split of both is heard, no label is.
        sounds: folders of further sounds.
        teacher: YAMNet's TensorFlow Lite file, its class map beside it.
        out: the embedding folder to write.
        cache: where mixtures, and the state after each epoch, are kept.
        mixtures: how many, of ten patches each.
        epochs: passes over them.
        seed: of mixtures, initial weights and order.
        skip_bad: leave out street recordings that are missing or unreadable.

    Raises:
        InputError: data, sounds or teacher cannot be read, or `out` holds something else.
        OutputError: `out` or `cache` cannot be written.
        Stopped: a signal asked for an end; the last whole epoch is kept.
    """
    check_room(out, "embedding", MANIFEST_NAME, NAMES.__contains__)
    if mixtures < N_CALIBRATION_WINDOWS:
        raise InputError(f"{mixtures} mixtures teach nothing; {N_CALIBRATION_WINDOWS} are the least")
    # Before sounds are read: what is no teacher is refused at once.
    heard = np.unique(np.concatenate(Teacher(teacher).columns))
    if (taxonomy := read_dataset_taxonomy(data)) != SONYC_UST:
        log.warning("the lesson attends most to what SONYC-UST's tags need (yamnet.yaml)", tags=taxonomy.name)
    corpus = make_corpus(data, sounds, teacher, cache, n=mixtures, seed=seed, skip_bad=skip_bad)
    lesson = Lesson(epochs, seed, heard)
    kept = cache / f"lesson-{sha256([corpus.digest, epochs, seed, heard.tolist()])[:16]}.partial"
    log.info("teaching", **corpus.about)
    teaching = Teaching(lesson, corpus)
    with writing(kept), stop_on_signals() as stop:
        net = teaching.run(kept, stop)
    exam = teaching.examine()
    every = len(corpus) // N_CALIBRATION_WINDOWS
    embedding = export_embedding(
        net,
        out,
        kind=KIND,
        source=_source(corpus, lesson, exam),
        calibration=to_logmel(corpus.patches[::every]),
    )
    kept.unlink(missing_ok=True)
    return embedding


def _source(corpus: Corpus, lesson: Lesson, exam: dict[str, float]) -> str:
    about = corpus.about
    return (
        f"taught by YAMNet (sha256 {about['teacher'][:12]}) on {about['mixtures']} mixtures of "
        f"{about['street_recordings']} streets, {about['clips']} clips and {about['further_sounds']} sounds, "
        f"{lesson.epochs} epochs, seed {lesson.seed}, exam {exam.get('exam')}"
    )
