"""A pupil learns what its teacher hears, stopped or not; a root net learns from teacher and labels alike."""

import csv
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from structlog.testing import capture_logs
from torch import Tensor

from edgetag.contract.errors import InputError
from edgetag.contract.strict_yaml import load_yaml
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.dsp.resample import resample
from edgetag.dsp.vggish_logmel import VggishLogMel
from edgetag.tagging.bundle import OnnxNet
from edgetag_train import export
from edgetag_train.data import compute, features, training
from edgetag_train.data.dataset import open_dataset, read_labels
from edgetag_train.data.features import Windows, join, recording_windows
from edgetag_train.data.mixtures import Mixer, Pool, at_16_khz
from edgetag_train.data.patches import check_embedding_net
from edgetag_train.data.sounds import read_library, read_window
from edgetag_train.data.training import TrainingData, prepare
from edgetag_train.embedding import Embedding, read_embedding
from edgetag_train.fit.loop import Examples, Fitting, plain
from edgetag_train.fit.run import ROOT, Run
from edgetag_train.fit.stopping import Stop, Stopped
from edgetag_train.fit.system import examples, judge_root
from edgetag_train.models.patch_net import PatchNet, Pupil
from edgetag_train.recipe import Cosine, Data, Fit, read_recipe
from edgetag_train.teaching import corpus as corpora
from edgetag_train.teaching import lesson as lessons
from edgetag_train.teaching import teach as teaching
from edgetag_train.teaching import teacher as teachers
from edgetag_train.teaching.corpus import Corpus, make_corpus, to_bytes, to_logmel
from edgetag_train.teaching.lesson import Lesson, Teaching
from edgetag_train.teaching.teacher import FRAME_SAMPLES, N_SCORES, PATCH_SAMPLES, Teacher
from edgetag_train.teaching.verdict import Verdict, fit_verdict
from fakes_dataset import write_clips, write_harbour, write_streets

N_TAGS = len(SONYC_UST.coarse_ids)
SHARE = 0.75
SMALL_CHANNELS = (4, 4, 8, 8, 16)


class FakeTeacher:
    """Its logits are linear in the mean of each mel band, so that a net can learn them; tag k is heard in
    column k alone."""

    columns = tuple(np.array([k]) for k in range(N_TAGS))
    heard: ClassVar[Path]
    """A file that grows by a byte for each window that it hears, in whatever process."""
    patience: ClassVar[int | None] = None

    def __init__(self, path: Path) -> None:
        self.sha256 = self.digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.heard.open("ab") as file:
            file.write(b".")
        if self.patience is not None and self.heard.stat().st_size > self.patience:
            raise RuntimeError("interrupted")
        return fake_logits(VggishLogMel()(samples))

    def evidence(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return self(samples).max(axis=0)[:N_TAGS]


def fake_logits(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shape: [..., 96, 64] -> [..., 521]"""
    ears = np.random.default_rng(7).normal(0, 0.3, (patches.shape[-1], N_SCORES))
    return ((patches.mean(axis=-2) + 2) @ ears - 2).astype(np.float32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the fake takes for its file."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.tflite"
    path.write_bytes(b"a teacher")
    return path


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The fake teacher and a smaller pupil, wherever the trainer asks for them."""
    for module in features, training, corpora, teaching:
        monkeypatch.setattr(module, "Teacher", FakeTeacher)
    monkeypatch.setattr(lessons, "PatchNet", lambda: PatchNet(SMALL_CHANNELS))
    monkeypatch.setattr(FakeTeacher, "heard", tmp_path / "heard", raising=False)
    return tmp_path / "heard"


def n_heard(fake: Path) -> int:
    return fake.stat().st_size if fake.exists() else 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, two streets to train on and two to judge by; nobody was asked about a dog in the first."""
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder / "clips")
    write_streets(folder / "sonyc", fine=("1-1", "1-3"))
    table = folder / "sonyc" / "annotations.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["8_dog_presence"] = "-1"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


# -- the teacher -------------------------------------------------------------------------------------------


def class_map(folder: Path, names: Sequence[str] | None = None) -> Path:
    """YAMNet's table, or one that holds at least what is asked of it; the model's path."""
    if names is None:
        asked = load_yaml(teachers._CLASSES.read_bytes())
        known = sorted({name for classes in asked.values() for name in classes})
        names = [*known, *(f"class {k}" for k in range(N_SCORES - len(known)))]
    with (folder / "yamnet_class_map.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "mid", "display_name"])
        rows.writerows([k, f"/m/{k}", name] for k, name in enumerate(names))
    (folder / "yamnet.tflite").write_bytes(b"any")
    return folder / "yamnet.tflite"


def litert(monkeypatch: pytest.MonkeyPatch, *shapes: tuple[int, ...]) -> None:
    """A LiteRT whose every model has one input, the first of `shapes`, and the rest of them as outputs."""

    class Interpreter:
        def __init__(self, *_: object, **__: object) -> None:
            if not shapes:
                raise ValueError("no model")

        def get_input_details(self) -> list[dict[str, Any]]:
            return [{"index": 0, "shape": np.array(shapes[0])}]

        def get_output_details(self) -> list[dict[str, Any]]:
            return [{"index": k, "shape": np.array(shape)} for k, shape in enumerate(shapes[1:], 1)]

        def allocate_tensors(self) -> None: ...

    module = ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)


def test_a_teacher_without_litert_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match=r"^LiteRT is not installed: .* -m pip install 'edgetag\[teach\]'$"):
        Teacher(class_map(tmp_path))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([], "cannot be read as a TensorFlow Lite model"),
        ([(1, 224, 224, 3), (1, 1000)], "is not YAMNet"),
        ([(FRAME_SAMPLES,), (1, 1000)], "is not YAMNet"),
        ([(FRAME_SAMPLES,), (1, N_SCORES), (1, 1024)], "is not YAMNet"),
        ([(FRAME_SAMPLES,)], "is not YAMNet"),
    ],
)
def test_another_net_is_no_teacher(
    shapes: list[tuple[int, ...]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a file that LiteRT refuses nor a net with other inputs and outputs."""
    litert(monkeypatch, *shapes)
    with pytest.raises(InputError, match=said) as refusal:
        Teacher(class_map(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_teacher_without_its_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the table, with one of another length, of other columns, or of other classes."""
    litert(monkeypatch, (FRAME_SAMPLES,), (1, N_SCORES))
    model = class_map(tmp_path)
    assert len(Teacher(model).columns) == N_TAGS
    with pytest.raises(InputError, match="has 3 classes; YAMNet has 521"):
        Teacher(class_map(tmp_path, ["Dog", "Speech", "Siren"]))
    with pytest.raises(InputError, match="is not YAMNet's: 'Vehicle' is not in list"):
        Teacher(class_map(tmp_path, [str(k) for k in range(N_SCORES)]))
    table = tmp_path / "yamnet_class_map.csv"
    table.write_text("index,name\n0,Dog\n")
    with pytest.raises(InputError, match="'display_name'; YAMNet's table of classes is expected beside it"):
        Teacher(model)
    table.unlink()
    with pytest.raises(InputError, match="YAMNet's table of classes is expected beside it"):
        Teacher(model)
    with pytest.raises(InputError, match="cannot be read"):
        Teacher(class_map(tmp_path).with_name("absent.tflite"))


@pytest.fixture(scope="module")
def yamnet(shared: Path) -> Teacher:
    pytest.importorskip("ai_edge_litert")
    return Teacher(shared / "peers" / "yamnet.tflite")


@pytest.fixture(scope="module")
def dog(shared: Path) -> NDArray[np.float32]:
    """Ten seconds of a barking dog at 16 kHz."""
    clip = shared / "audio" / "clips" / "8_dog" / "dog-barking-whining" / "ESC-10__1-100032-A.flac"
    return resample(read_window(clip), 44_100, 16_000)


def test_the_teachers_frames_are_the_patches(yamnet: Teacher, dog: NDArray[np.float32]) -> None:
    """What patch k and the teacher's frame k stand on are the same 15,600 samples: 96 log-mel frames.

    The outermost samples count little, for both weigh them by a window; so 200 of them are changed.
    """
    assert len(dog) >= PATCH_SAMPLES * 9 + FRAME_SAMPLES
    patch = 4
    start, end = patch * PATCH_SAMPLES, patch * PATCH_SAMPLES + FRAME_SAMPLES
    noisy = dog + np.random.default_rng(0).normal(0, 0.01, len(dog)).astype(np.float32)

    def heard(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return VggishLogMel()(samples)[patch], yamnet(samples)[patch]

    alone = np.zeros_like(noisy)
    alone[start:end] = noisy[start:end]
    expected = heard(noisy)
    for found, whole in zip(heard(alone), expected, strict=True):
        np.testing.assert_array_equal(found, whole)
    for edge in slice(start, start + 200), slice(end - 200, end):
        cut = noisy.copy()
        cut[edge] = 0
        for found, whole in zip(heard(cut), expected, strict=True):
            assert not np.array_equal(found, whole)


def test_the_teacher_hears_a_dog(yamnet: Teacher, dog: NDArray[np.float32]) -> None:
    """Loud and alone it speaks for tag 8 more than for any other; of silence nothing does."""
    evidence = yamnet.evidence(0.9 * dog / np.abs(dog).max())
    assert evidence.shape == (N_TAGS,)
    assert SONYC_UST.coarse_ids[int(evidence.argmax())] == "8"
    assert evidence.max() > 0
    assert np.isfinite(yamnet(np.zeros(160_000, np.float32))).all()


# -- what its evidence is worth ----------------------------------------------------------------------------


def examples_of(slope: float, intercept: float, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of three tags, and labels drawn by what it is worth."""
    rng = np.random.default_rng(0)
    evidence = rng.normal(-2, 3, (n, 3)).astype(np.float32)
    probability = 1 / (1 + np.exp(-(slope * evidence + intercept)))
    return evidence, (rng.random((n, 3)) < probability).astype(np.float32)


def test_more_evidence_is_never_worth_less() -> None:
    verdict = Verdict(np.array([0.7, 0.1]), np.array([1.0, -3.0]))
    evidence = np.linspace(-11.5, 11.5, 50, dtype=np.float32)[:, np.newaxis].repeat(2, axis=1)
    found = verdict(evidence)
    assert found.shape == (50, 2)
    assert found.dtype == np.float32
    assert (np.diff(found, axis=0) > 0).all()
    assert ((found > 0) & (found < 1)).all()


def test_many_labels_tell_what_evidence_is_worth() -> None:
    """Slope and intercept come out as they went in."""
    verdict = fit_verdict(*examples_of(0.9, -1.2))
    np.testing.assert_allclose(verdict.slopes, 0.9, atol=0.1)
    np.testing.assert_allclose(verdict.intercepts, -1.2, atol=0.2)


def test_a_tag_that_never_occurs_is_believed_nearly_as_the_others_are() -> None:
    """With few recordings it stays near the common line, where its own labels alone would take it to minus
    infinity; and what is unknown says nothing."""
    evidence, labels = examples_of(0.9, -1.2, n=60)
    labels[:, 2] = 0
    evidence[:, 2] = -5
    verdict = fit_verdict(evidence, labels)
    others = verdict.intercepts[:2].mean()
    assert abs(verdict.intercepts[2] - others) < 1
    labels[:, 2] = np.nan
    unknown = fit_verdict(evidence, labels)
    assert unknown.slopes[2] == pytest.approx(unknown.slopes[:2].mean(), abs=0.05)
    assert unknown.intercepts[2] == pytest.approx(unknown.intercepts[:2].mean(), abs=0.05)


def test_unknown_labels_are_left_out() -> None:
    """Rows of them change nothing; without any label every tag has one and the same verdict."""
    evidence, labels = examples_of(0.9, -1.2, n=300)
    known = fit_verdict(evidence, labels)
    more = fit_verdict(np.r_[evidence, evidence + 5], np.r_[labels, np.full_like(labels, np.nan)])
    np.testing.assert_allclose(more.slopes, known.slopes, atol=1e-6)
    np.testing.assert_allclose(more.intercepts, known.intercepts, atol=1e-6)
    nothing = fit_verdict(evidence, np.full_like(labels, np.nan))
    assert (nothing.slopes > 0).all()
    assert len({*nothing.slopes}) == len({*nothing.intercepts}) == 1


# -- the corpus --------------------------------------------------------------------------------------------


def test_patches_are_kept_within_half_a_step() -> None:
    """A third of a decibel is a step; what lies beyond the range is kept at its end."""
    logmel = np.linspace(np.log(0.01), 5.5, 1000, dtype=np.float32)
    kept = to_bytes(logmel)
    assert kept.dtype == np.uint8
    assert to_logmel(kept).dtype == np.float32
    np.testing.assert_allclose(to_logmel(kept), logmel, atol=0.02 + 1e-5)
    np.testing.assert_array_equal(to_bytes(to_logmel(kept)), kept)
    assert to_bytes(np.array([-100, 100], np.float32)).tolist() == [0, 255]


def made(data: Path, teacher: Path, cache: Path, **changes: Any) -> Corpus:
    return make_corpus(data, (), teacher, cache, **({"n": 12, "seed": 5} | changes))


def same(a: Corpus, b: Corpus) -> bool:
    return (
        np.array_equal(a.patches, b.patches)
        and np.array_equal(a.logits, b.logits)
        and (a.about, a.digest) == (b.about, b.digest)
    )


def test_teacher_and_pupil_hear_the_same_mixtures(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Logits are the teacher's of the very patches; mixture k is of seed + k; none is heard twice."""
    corpus = made(data, teacher, tmp_path / "cache")
    assert len(corpus) == 12
    assert corpus.patches.shape == (12, 10, 96, 64)
    assert corpus.logits.shape == (12, 10, N_SCORES)
    assert n_heard(FakeTeacher.heard) == 12
    np.testing.assert_allclose(corpus.logits, fake_logits(to_logmel(corpus.patches)), atol=0.15)
    assert same(made(data, teacher, tmp_path / "cache"), corpus)
    assert n_heard(FakeTeacher.heard) == 12
    later = made(data, teacher, tmp_path / "cache", n=4, seed=9)
    np.testing.assert_array_equal(later.patches, corpus.patches[4:8])
    assert n_heard(FakeTeacher.heard) == 12
    assert later.digest != corpus.digest
    library = read_library(data, "train")
    streets = Pool.of(at_16_khz(library.recordings), even=True)
    mixer = Mixer(streets, Pool.of(at_16_khz([*library.events, *library.backgrounds])), Pool.of([]))
    for k in 0, 11:
        expected = VggishLogMel()(mixer.mixture(5 + k))
        np.testing.assert_allclose(to_logmel(corpus.patches[k]), expected, atol=0.021)


def test_another_teacher_is_heard_anew(data: Path, teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(b"another teacher")
    one, two = (made(data, path, tmp_path / "cache", n=2) for path in (teacher, other))
    assert n_heard(FakeTeacher.heard) == 4
    assert one.digest != two.digest
    np.testing.assert_array_equal(one.patches, two.patches)


def test_an_interrupted_corpus_is_gone_on_with(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as one that nobody interrupted, and what was heard before is not heard again."""
    n = 16
    monkeypatch.setattr(compute, "_CHUNK_ITEMS", 2)
    monkeypatch.setattr(compute, "n_processes", lambda: 2)
    monkeypatch.setattr(FakeTeacher, "patience", 10)
    with pytest.raises(RuntimeError, match="interrupted"):
        made(data, teacher, tmp_path / "cache", n=n)
    monkeypatch.setattr(FakeTeacher, "patience", None)
    FakeTeacher.heard.unlink()
    again = made(data, teacher, tmp_path / "cache", n=n)
    assert 0 < n_heard(FakeTeacher.heard) < n
    assert same(again, made(data, teacher, tmp_path / "fresh", n=n))


# -- the pupil ---------------------------------------------------------------------------------------------


def test_an_embedding_is_of_each_patch_by_itself() -> None:
    """[n, 96, 64] -> [n, 128] in 0…255, whatever n and whatever the others are."""
    torch.manual_seed(0)
    net, patches = PatchNet(), 3 * torch.randn(4, 96, 64) + torch.arange(4)[:, None, None]
    with torch.inference_mode():
        for _ in range(20):  # so that batch norm has seen something
            net(patches)
        net.eval()
        embeddings = net(patches)
        alone = torch.cat([net(patch[None]) for patch in patches])
        net.embed.weight *= 1e4
        extreme = net(patches)
    assert embeddings.shape == (4, 128)
    assert (embeddings.std(dim=0) > 1).any()
    torch.testing.assert_close(alone, embeddings, rtol=0, atol=0.01)
    assert ((extreme >= 0) & (extreme <= 255)).all()
    assert (extreme.min(), extreme.max()) == (0, 255)


def test_a_new_pupil_says_the_mean_and_little_else() -> None:
    mean = torch.linspace(-9, 3, N_SCORES)
    pupil = Pupil(PatchNet(), mean).eval()
    with torch.inference_mode():
        said = pupil(torch.randn(2, 96, 64))
    assert said.shape == (2, N_SCORES)
    torch.testing.assert_close(said, mean.expand(2, -1), rtol=0, atol=3)
    torch.testing.assert_close(pupil.head.bias.detach(), mean)


@pytest.fixture(scope="module")
def lesson_corpus() -> Corpus:
    """A hundred mixtures, each patch of another loudness."""
    rng = np.random.default_rng(0)
    loudness = rng.normal(-1, 1.5, (100, 10, 1, 1))
    patches = to_bytes((rng.normal(0, 0.5, (100, 10, 96, 64)) + loudness).astype(np.float32))
    logits = fake_logits(to_logmel(patches)).astype(np.float16)
    return Corpus(patches, logits, {"teacher": "0" * 64, "mixtures": 100}, "digest")


class StopAfter(Stop):
    """Asks for an end after so many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Stopped(15)


def weights(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_a_pupil_learns_and_an_interruption_changes_nothing(
    lesson_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss falls, the exam rises; stopped in its second epoch and begun again, it ends at the same bits."""
    monkeypatch.setattr(lessons, "BATCH", 32)  # 31 steps an epoch
    lesson = Lesson(3, 1, np.arange(N_TAGS))
    whole = Teaching(lesson, lesson_corpus)
    before = whole.examine()["exam"]
    with capture_logs() as said:
        net = whole.run(tmp_path / "whole.partial", Stop())
    losses = [line["loss"] for line in said if line["event"] == "taught"]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert whole.examine()["exam"] > max(0.5, before)
    assert not net.training

    stopped = Teaching(lesson, lesson_corpus)
    with pytest.raises(Stopped):
        stopped.run(tmp_path / "kept.partial", StopAfter(40))
    with capture_logs() as said:
        again = Teaching(lesson, lesson_corpus).run(tmp_path / "kept.partial", Stop())
    assert [line["epoch"] for line in said if line["event"] == "taught"] == [2, 3]
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(net).items())
    ended = Teaching(lesson, lesson_corpus).run(tmp_path / "kept.partial", StopAfter(0))
    assert all(torch.equal(weights(ended)[name], tensor) for name, tensor in weights(net).items())
    other = Teaching(Lesson(3, 2, np.arange(N_TAGS)), lesson_corpus)
    assert not torch.equal(other.pupil.head.weight, Teaching(lesson, lesson_corpus).pupil.head.weight)


def test_a_lesson_that_is_damaged_is_refused(lesson_corpus: Corpus, tmp_path: Path) -> None:
    """No traceback: one sentence that names the file."""
    kept = tmp_path / "lesson.partial"
    one = Teaching(Lesson(1, 1, np.arange(N_TAGS)), lesson_corpus)
    kept.write_bytes(b"no state")
    with pytest.raises(InputError, match="is damaged"):
        one.run(kept, Stop())
    torch.save({"epoch": 0, "pupil": {}}, kept)
    with pytest.raises(InputError, match=r"lesson\.partial is damaged"):
        one.run(kept, Stop())


def test_a_corpus_too_small_for_an_exam_has_none(lesson_corpus: Corpus) -> None:
    """Every fiftieth mixture is kept for it; nor is there one about what never changes."""
    few = Corpus(lesson_corpus.patches[:49], lesson_corpus.logits[:49], {}, "")
    assert Teaching(Lesson(1, 1, np.arange(N_TAGS)), few).examine() == {}
    constant = Corpus(lesson_corpus.patches, np.zeros_like(lesson_corpus.logits), {}, "")
    assert Teaching(Lesson(1, 1, np.arange(N_TAGS)), constant).examine() == {}


# -- from sounds to an embedding folder --------------------------------------------------------------------


def taught(data: Path, teacher: Path, folder: Path, **changes: Any) -> Embedding:
    stated = {"mixtures": 50, "epochs": 1, "seed": 3} | changes
    return teaching.teach(data, (), teacher, folder / "out", folder / "cache", **stated)


def test_a_taught_net_is_an_embedding_as_any_other(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Exported, checked, read again; it states what taught it; nothing unfinished is left."""
    found = taught(data, teacher, tmp_path)
    assert read_embedding(tmp_path / "out") == found
    assert found.kind == "patchnet"
    assert FakeTeacher(teacher).sha256[:12] in found.source
    assert "50 mixtures of 2 streets, 4 clips and 0 sounds, 1 epochs, seed 3, exam" in found.source
    patches = to_logmel(np.random.default_rng(0).integers(0, 150, (10, 96, 64)).astype(np.uint8))
    for path in found.paths.values():
        check_embedding_net(path.read_bytes(), path)
        values = OnnxNet(path.read_bytes(), str(path))({"patches": patches})
        assert values.shape == (10, 128)
        assert ((values >= 0) & (values <= 255)).all()
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_lesson_for_other_tags_than_sonycs_says_what_it_attends_to(teacher: Path, tmp_path: Path) -> None:
    """An embedding serves any tags, but YAMNet's classes are weighed as SONYC-UST's need them."""
    write_harbour(tmp_path / "data")
    nowhere = [tmp_path / "nowhere"]
    with capture_logs() as said, pytest.raises(InputError, match="is no folder of sounds"):
        teaching.teach(
            tmp_path / "data",
            nowhere,
            teacher,
            tmp_path / "out",
            tmp_path / "cache",
            mixtures=50,
            epochs=1,
            seed=3,
        )
    assert [(line["log_level"], line["tags"]) for line in said] == [("warning", "harbour")]


def test_what_cannot_be_taught_is_refused_before_anything_is_heard(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="7 mixtures teach nothing; 48 are the least"):
        taught(data, teacher, tmp_path, mixtures=7)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("something else")
    with pytest.raises(InputError, match="out"):
        taught(data, teacher, tmp_path)
    nowhere = [tmp_path / "nowhere"]
    with pytest.raises(InputError, match="is no folder of sounds"):
        make_corpus(data, nowhere, teacher, tmp_path / "cache", n=2, seed=0)
    empty = tmp_path / "data"
    write_streets(empty / "sonyc")
    write_clips(empty / "clips")
    table = empty / "clips" / "manifest.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"clips or other sounds; .* --sounds"):
        make_corpus(empty, (), teacher, tmp_path / "cache", n=2, seed=0)
    assert n_heard(FakeTeacher.heard) == 0


# -- a root net that is taught -----------------------------------------------------------------------------


@pytest.fixture
def settings() -> Data:
    return Data(seed=1, n_scenes=6, teacher_share=SHARE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def prepared(settings: Data, data: Path, cache: Path, teacher: Path) -> TrainingData:
    return prepare(settings, data, cache, teacher=teacher, validated=False)


def test_targets_are_verdict_and_label_by_their_shares(prepared: TrainingData, teacher: Path) -> None:
    """Of a coarse tag; the verdict alone where nobody knows; a category's only fine tag copies it, and every
    other fine tag is its label."""
    train, told = prepared.train, prepared.about["teacher"]
    assert told["sha256"] == FakeTeacher(teacher).sha256
    assert train.targets is not None
    assert train.evidence is not None
    coarse = list(range(N_TAGS))
    said = Verdict(np.array(told["slopes"]), np.array(told["intercepts"]))(train.evidence)
    labels = train.labels[:, coarse]
    unknown = np.isnan(labels)
    assert unknown.any()
    assert not unknown.all()
    targets = train.targets[:, coarse]
    np.testing.assert_allclose(targets[unknown], said[unknown], atol=2e-3)
    np.testing.assert_allclose(
        targets, np.where(unknown, said, SHARE * said + (1 - SHARE) * labels), atol=2e-3
    )
    index = SONYC_UST.index
    singles = {index[one.single.id]: index[one.id] for one in SONYC_UST.categories if one.single is not None}
    assert singles
    for fine, category in singles.items():
        np.testing.assert_array_equal(train.targets[:, fine], train.targets[:, category])
    others = sorted(set(range(37)) - {*coarse, *singles})
    np.testing.assert_array_equal(train.targets[:, others], train.labels[:, others])


def test_a_teacher_changes_what_is_taught_not_what_it_is_taught_on(
    prepared: TrainingData, settings: Data, data: Path, cache: Path
) -> None:
    """Without it: the same windows, labels and digest, so that features and a fitted run are found again."""
    alone = prepare(settings, data, cache, validated=False)
    np.testing.assert_array_equal(alone.train.labels, prepared.train.labels)
    np.testing.assert_array_equal(alone.train.logmel[:], prepared.train.logmel[:])
    assert alone.train.digest == prepared.train.digest
    assert alone.train.evidence is None
    assert alone.train.targets is None
    assert "teacher" not in alone.about


def test_the_root_is_taught_the_targets_and_a_branch_its_labels(prepared: TrainingData) -> None:
    train = prepared.train
    np.testing.assert_array_equal(examples(train, ROOT, SONYC_UST).targets, train.targets)
    plainly = Windows(train.logmel, train.labels)
    np.testing.assert_array_equal(examples(plainly, ROOT, SONYC_UST).targets, train.labels)
    for name in "1", "5":
        for dummy in False, True:
            branch, expected = (
                examples(one, f"branch-{name}", SONYC_UST, dummy=dummy) for one in (train, plainly)
            )
            np.testing.assert_array_equal(branch.rows, expected.rows)
            np.testing.assert_array_equal(branch.targets, expected.targets)
            assert len(branch)


def test_evidence_is_kept_and_joined(data: Path, teacher: Path, cache: Path) -> None:
    """A row a window, of its own samples at 16 kHz; windows without it leave what is joined without."""
    dataset = open_dataset(data, ["train"])
    stated: dict[str, Any] = {
        "labels": dataset.labels.binary(),
        "augmentation": Data().augmentation,
        "seed": 0,
        "backgrounds": (),
        "embedding": None,
    }
    windows = recording_windows(dataset, cache, **stated, teacher=teacher)
    assert windows.evidence is not None
    assert windows.evidence.shape == (2, N_TAGS)
    for k, audio in enumerate(dataset.audio):
        expected = FakeTeacher(teacher).evidence(resample(read_window(audio), 44_100, 16_000))
        np.testing.assert_allclose(windows.evidence[k], expected, rtol=1e-4, atol=1e-4)
    both = join(windows, windows)
    assert both.evidence is not None
    np.testing.assert_array_equal(both.evidence, np.tile(windows.evidence, (2, 1)))
    assert join(windows, recording_windows(dataset, cache, **stated)).evidence is None


def test_what_the_teacher_says_is_not_shifted_again(prepared: TrainingData, data: Path) -> None:
    """Scenes have other priors than streets, by which a bundle moves the root's logits; but coarse tags that
    are taught by a teacher speak for the street already."""
    recipe = read_recipe("hierarchical2_cnn", ["data.n_scenes=6"])
    labelled = export._shift(Run(Path(), recipe, SONYC_UST, {}), data, prepared.train)
    taught_recipe = read_recipe("hierarchical2_cnn", ["data.n_scenes=6", f"data.teacher_share={SHARE}"])
    shifted = export._shift(Run(Path(), taught_recipe, SONYC_UST, {}), data, prepared.train)
    assert len(read_labels(data).of_split("train").binary())
    assert labelled[:N_TAGS].any()
    assert not shifted[:N_TAGS].any()
    np.testing.assert_array_equal(shifted[N_TAGS:], labelled[N_TAGS:])


# -- patches in random order -------------------------------------------------------------------------------

SHUFFLED = Fit(table=2, epochs=2, batch=4, schedule=Cosine(), shuffle=True)


def embedded_windows(n: int = 8) -> Windows:
    rng = np.random.default_rng(0)
    labels = (np.arange(n)[:, np.newaxis] % 2 == np.arange(37) % 2).astype(np.float32)
    logmel = rng.uniform(-80, 0, (n, 128, 862)).astype(np.float16)
    return Windows(logmel, labels, rng.uniform(0, 255, (n, 10, 128)).astype(np.float32))


def fitting(seed: int = 1) -> Fitting:
    return Fitting(
        SHUFFLED,
        37,
        fusion="concat",
        positive=torch.ones(37),
        keep={},
        seed=seed,
        device=torch.device("cpu"),
    )


def fit(one: Fitting, windows: Windows, checkpoint: Path, *, stop_after: int = -1) -> dict[str, Tensor]:
    """To the end, or until `stop_after` steps are done."""
    stop, done = Stop(), [0]

    def on_step(*_: int) -> None:
        done[0] += 1
        stop.asked = 15 if done[0] == stop_after else None

    shown = Examples(windows, np.arange(len(windows)), windows.labels)
    [kept] = one.run(
        shown,
        None,
        judge_root,
        checkpoint=checkpoint,
        stop=stop,
        on_step=on_step,
        on_epoch=lambda record: None,
    ).values()
    return kept


def test_shuffling_keeps_every_patch_and_the_log_mel(tmp_path: Path) -> None:
    """Each window's patches in another order of its own; in evaluation they stay as they are."""
    windows, one = embedded_windows(), fitting()
    assert isinstance(windows.embedding, np.ndarray)
    shown: list[tuple[Tensor, Tensor]] = []
    one._net.register_forward_pre_hook(lambda _, given: shown.append((given[0].clone(), given[1].clone())))
    fit(one, windows, tmp_path / "net.partial")
    assert len(shown) == 4
    originals = {plain(windows.logmel[k : k + 1]).numpy().tobytes(): k for k in range(len(windows))}
    orders = []
    for logmel, embedding in shown:
        for k, patches in zip(
            [originals[one_window.numpy().tobytes()] for one_window in logmel], embedding.numpy(), strict=True
        ):
            place = [row.tolist() for row in windows.embedding[k]]
            orders.append(tuple(place.index(row.tolist()) for row in patches))
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == len(orders)
    shown.clear()
    one.evaluate(Examples(windows, np.arange(len(windows)), windows.labels))
    np.testing.assert_array_equal(shown[0][1], windows.embedding)


def test_an_interrupted_shuffled_fit_ends_at_the_same_weights(tmp_path: Path) -> None:
    windows = embedded_windows()
    whole = fit(fitting(), windows, tmp_path / "whole.partial")
    with pytest.raises(Stopped):
        fit(fitting(), windows, tmp_path / "net.partial", stop_after=3)
    resumed = fitting(seed=99)
    resumed.restore(torch.load(tmp_path / "net.partial", weights_only=True))
    again = fit(resumed, windows, tmp_path / "net.partial")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
