"""The report: every system and class is on it, nothing comes from elsewhere, and it says what it lacks."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.metrics import evaluate
from edgetag_train.paper import read_table4
from edgetag_train.report import write_report
from edgetag_train.report.plots import confusion, confusion_shares
from edgetag_train.report.runs import read_run

N_TAGS = len(SONYC_UST.ids)
N_COARSE = len(SONYC_UST.coarse_ids)
STAND_IN = {"kind": "vggish-random", "source": "random weights, seed 0: not trained", "sha256": "ab" * 32}
VGGISH = {"kind": "vggish", "source": "vggish-10086976.pth", "sha256": "cd" * 32}
NETS = ("root", "branch-1", "branch-7")


def scored(n: int, seed: int, skill: float) -> tuple[np.ndarray, np.ndarray]:
    """A truth without powered saws (class 4), and scores that know `skill` of it."""
    present = np.random.default_rng(5).random((n, N_TAGS)) < np.linspace(0.6, 0.1, N_TAGS)
    truth = present.astype(np.float32)
    truth[:, [index for index, tag in enumerate(SONYC_UST.ids) if tag[0] == "4"]] = 0
    scores = skill * truth + (1 - skill) * np.random.default_rng(seed).random(truth.shape)
    return truth, scores.astype(np.float32)


def epochs(net: str) -> list[dict[str, Any]]:
    found = []
    for epoch in range(1, 21):
        line: dict[str, Any] = {"net": net, "epoch": epoch, "loss": 0.6 / epoch + 0.1, "seconds": 90.0}
        line |= {"rate": 1e-3 if epoch < 9 or epoch > 14 else 1e-4, "validation_loss": 0.5 / epoch + 0.25}
        if net == "root":
            line |= {"coarse_micro_auprc": 0.6 - 0.3 / epoch, "fine_micro_auprc": None}
        found.append(line | {"event": {9: "reduced", 15: "restarted", 6: "best"}.get(epoch)})
    return found


def make_run(
    folder: Path,
    *,
    systems: tuple[str, ...] = ("cnn_vggish1",),
    splits: tuple[str, ...] = ("validate",),
    recipe: str = "cnn_vggish",
    seed: int = 1,
    embedding: dict[str, str] | None = STAND_IN,
    overrides: tuple[str, ...] = (),
    watched: str = "recordings of the split validate",
    skill: float = 0.4,
) -> Path:
    """A run directory as training and evaluation leave it; real recordings have no fine labels."""
    folder.mkdir(parents=True)
    root = {"table": 1, "fusion": "concat" if embedding else "none", "optimiser": "adam"}
    branch = {"table": 2, "optimiser": "rmsprop"} if "hierarchical" in recipe else None
    whole = {"name": recipe, "seed": seed, "data": {"seed": seed}, "root": root, "branch": branch}
    (folder / "recipe.json").write_text(json.dumps(whole))
    counts = {"recordings": 89, "scenes": 1200, "windows": 1289}
    validation = {"from": watched, "windows": 63, "digest": "decaf"}
    data = {"digest": f"c0ffee{seed}", "train": counts, "validation": validation}
    provenance = {"edgetag": "0.1.0", "git": "275aae8", "torch": "2.13", "device": "cpu", "data": data}
    provenance |= {"started": "2026-11-22T10:00:00Z", "overrides": overrides, "embedding": embedding}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    lines = [json.dumps(epoch) for net in (NETS if branch else NETS[:1]) for epoch in epochs(net)]
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
    for split in splits:
        truth, scores = scored(63 if split == "validate" else 150, seed, skill)
        if split == "validate":
            truth[:, N_COARSE:] = np.nan
        (folder / "evaluation" / split).mkdir(parents=True)
        names = [f"{split}-{row:03}.wav" for row in range(len(truth))]
        for system in systems:
            path = folder / "evaluation" / split / f"{system}.npz"
            np.savez(path, filenames=names, truth=truth, scores=scores)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of two systems on one root, and one run without an embedding, on both splits."""
    tmp_path = tmp_path_factory.mktemp("runs")
    both = ("validate", "scenes")
    two = ("cnn_vggish1", "cnn_vggish2")
    seeds = [make_run(tmp_path / f"vggish-{seed}", systems=two, splits=both, seed=seed) for seed in (1, 2, 3)]
    plain = make_run(
        tmp_path / "plain",
        systems=("hierarchical1_cnn",),
        splits=both,
        recipe="hierarchical1_cnn",
        embedding=None,
        skill=0.3,
    )
    return [*seeds, plain]


@pytest.fixture(scope="module")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page on all of them, as HTML."""
    return page(runs, tmp_path_factory.mktemp("report") / "report.html")


def page(runs: list[Path], out: Path) -> str:
    write_report(runs, out)
    return out.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader reads: no tags, no styles, no entities."""
    bare = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


# -- what is on it ----------------------------------------------------------------------------------------


def test_every_system_class_and_run_is_on_it(runs: list[Path], report: str, tmp_path: Path) -> None:
    """The paper's five systems, ours, all categories, both splits and every run with its provenance."""
    lines = text_of(page(runs, tmp_path / "report.md"))
    titles = ["CNN+VGGish1", "CNN+VGGish2", "Hierarchical1", "Hierarchical2", "Hierarchical3"]
    names = [f"{category.id} {category.name.replace('-', ' ')}" for category in SONYC_UST.categories]
    facts = [
        "vggish-1",
        "plain",
        "89 recordings, 1,200 scenes",
        "c0ffee2",
        "63 windows",
        "275aae8",
        "torch 2.13",
        "30 min",
    ]
    for expected in [*titles, *names, *facts, "no embedding", "Split “validate”", "Split “scenes”"]:
        assert expected in text_of(report)
        assert expected in lines


def test_seeds_become_one_row(runs: list[Path], report: str) -> None:
    """Runs that differ in their seeds alone share a row: the mean, and the range below it."""
    micro = []
    for run in runs[:3]:
        with np.load(run / "evaluation" / "validate" / "cnn_vggish1.npz") as file:
            micro.append(evaluate(file["truth"], file["scores"], "coarse", SONYC_UST).micro_auprc)
    assert f"{np.mean(micro):.3f}</b><small>{min(micro):.3f}–{max(micro):.3f}</small>" in report
    assert report.count("random stand-in for VGGish · 3 runs</small>") == 2 * (
        2 + 3
    )  # two systems; fine only on scenes


def test_other_recipes_are_no_seeds(tmp_path: Path) -> None:
    """The same system with another embedding or another recipe keeps a row of its own, named by its run."""
    runs = [make_run(tmp_path / "fake"), make_run(tmp_path / "real", embedding=VGGISH)]
    found = text_of(page(runs, tmp_path / "report.html"))
    assert "random stand-in for VGGish · fake" in found
    assert "CNN+VGGish1 VGGish · real" in found


def test_stand_in_is_said_plainly(tmp_path: Path) -> None:
    """Random weights are never called VGGish, and real ones raise no warning."""
    fake = page([make_run(tmp_path / "fake")], tmp_path / "fake.html")
    assert 'class="warning">Rows marked “random stand-in”' in fake
    assert "CNN+VGGish1<small>random stand-in for VGGish</small>" in fake
    assert "random" not in text_of(
        page([make_run(tmp_path / "real", embedding=VGGISH)], tmp_path / "real.html")
    )


def test_figures_that_flatter_are_said_to(tmp_path: Path) -> None:
    """Epochs were chosen on a split, or on scenes of the very clips that the figures are of."""
    both = ("validate", "scenes")
    recordings = make_run(tmp_path / "recordings", splits=both)
    scenes = make_run(tmp_path / "scenes", splits=both, watched="scenes of held-out clips")
    unscored = make_run(tmp_path / "unscored", watched="scenes of held-out clips")
    pages = [text_of(page([run], tmp_path / "page.html")) for run in (recordings, scenes, unscored)]
    assert ["on that split flatter" in text for text in pages] == [True, False, False]
    assert ["on “scenes” flatter a little" in text for text in pages] == [False, True, False]


def test_published_figures_have_a_source() -> None:
    """No published figure stands without where it is from and what it was measured on."""
    table = read_table4()
    assert "printed Table 4 was not at hand" in table.note
    for item in [*table.systems.values(), *table.references]:
        assert item.source
        assert item.data
        for level in (item.coarse, item.fine):
            values = (level.micro_auprc, level.micro_f1, level.macro_auprc)
            assert all(value is None or 0 < value < 1 for value in values)


def test_published_figures_that_cannot_be_read(tmp_path: Path) -> None:
    """A key that means nothing, or no file at all, is named."""
    (tmp_path / "table.yaml").write_text("note: x\nsystems: {a: {data: d, source: s, coarse: {f1: 1.0}}}")
    with pytest.raises(InputError, match=r"table\.yaml: .*unknown field `f1`"):
        read_table4(tmp_path / "table.yaml")
    with pytest.raises(InputError, match="No such file"):
        read_table4(tmp_path / "missing.yaml")


def test_published_beside_ours_on_their_split_alone(report: str) -> None:
    """Published figures were measured on `validate`: the table of another split has no column for them."""
    assert report.count("the printed Table 4 was not at hand") == 2
    validate, scenes = report.split('<h2 id="split-scenes">')
    scenes = scenes.split("<h2")[0]
    assert ">published<" in validate
    assert "DCASE 2019 baseline" in validate
    assert ">published<" not in scenes
    assert "DCASE 2019 baseline" not in scenes


def test_what_is_not_known_is_a_dash(report: str) -> None:
    """Levels without labels and classes without positives are dashes with a reason; NaN is nowhere."""
    assert "A dash under “ours”: no recording of split 'validate' has fine labels." in text_of(report)
    assert "4 powered saw<small>no positives</small>" in report
    assert "nan" not in text_of(report).lower().split()


def test_no_positive_at_all(tmp_path: Path) -> None:
    """A split without a single positive still makes a report, of dashes."""
    run = make_run(tmp_path / "run")
    path = run / "evaluation" / "validate" / "cnn_vggish1.npz"
    truth, scores = scored(5, 1, 0.5)
    np.savez(path, filenames=list("abcde"), truth=np.zeros_like(truth), scores=scores)
    found = page([run], tmp_path / "report.html")
    assert "—" in found
    assert "nan" not in text_of(found).lower().split()


@pytest.mark.parametrize(
    "changes",
    [[], [{}], [{"rate": 0.0}], [{"loss": None}, {"rate": 0.0}], [{"validation_loss": None, "event": None}]],
)
def test_odd_histories(tmp_path: Path, changes: list[dict[str, Any]]) -> None:
    """No epoch, one epoch, a rate that fell to zero, a loss that was no number: all of them are drawn."""
    run = make_run(tmp_path / "run")
    lines = [epoch | change for epoch, change in zip(epochs("branch-1"), changes, strict=False)]
    (run / "history.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert ("Training of branch-1 in run" in page([run], tmp_path / "report.html")) == bool(changes)


# -- the two forms ----------------------------------------------------------------------------------------


def test_html_asks_no_host(tmp_path: Path) -> None:
    """One file: no address of another host, in it or in its drawings, and a policy that forbids it."""
    found = page([make_run(tmp_path / "run", recipe="hierarchical1")], tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.glob("report*")) == ["report.html"]
    assert "default-src 'none'" in found
    drawings = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', found)
    assert len(drawings) == found.count("<img")
    for text in [found, *(base64.b64decode(drawing).decode() for drawing in drawings)]:
        names = re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]*"', "", text)
        assert not re.search(r"https?://|@import|url\((?!#)", names)
        assert "<script" not in text


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    """A report has no clock and no random ids: it can be compared and committed."""
    runs = [make_run(tmp_path / "run")]
    assert page(runs, tmp_path / "a.html") == page(runs, tmp_path / "b.html")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """Whatever a run's files say is shown as it is, and never becomes markup."""
    evil = "<script>alert(1)</script>|`*[x](http://evil)"
    run = make_run(tmp_path / "run<b>", recipe=evil, overrides=(f"name={evil}",), systems=("so<i>me$^$",))
    found = page([run], tmp_path / "report.html")
    assert "<script" not in found
    assert "<i>" not in found
    assert evil in text_of(found)
    lines = page([run], tmp_path / "report.md")
    assert "<script" not in lines
    assert "[x](" not in lines
    assert "\\[x\\](http://evil)" in lines


def test_markdown_pictures_exist(tmp_path: Path) -> None:
    """Every picture is a file beside the page, linked relatively, and no file is left over."""
    found = page([make_run(tmp_path / "run")], tmp_path / "a report.md")
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", found)
    assert all(link.startswith("a%20report_files/") for link in links)
    files = {path.name for path in (tmp_path / "a report_files").iterdir()}
    assert {link.split("/")[1] for link in links} == files


def test_markdown_tables_are_tables(tmp_path: Path) -> None:
    """Every row is as wide as its head, whatever a system is called."""
    found = page([make_run(tmp_path / "a|b", systems=("a|b", "cnn1"))], tmp_path / "report.md")
    tables = re.findall(r"(?:^\|.*\n)+", found, flags=re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


# -- confusion --------------------------------------------------------------------------------------------


def test_confusion_counts_what_it_says() -> None:
    """Recall on the diagonal; beside it only recordings that have the row's class and lack the column's."""
    truth, scores = np.zeros((2, 4, N_TAGS))
    truth[:3, 0] = 1  # engine in three recordings,
    truth[0, 6] = 1  # and a voice in one of them
    truth[3] = np.nan
    scores[[0, 1], 0] = 0.5
    scores[[0, 1, 3], 6] = 0.9
    shares, n_present = confusion_shares(truth, scores, SONYC_UST)
    assert n_present.tolist() == [3, 0, 0, 0, 0, 0, 1, 0]
    assert shares[0, 0] == pytest.approx(2 / 3)
    assert shares[0, 6] == pytest.approx(1 / 2)
    assert shares[6, 6] == 1
    assert np.isnan(shares[6, 0])  # no recording has a voice and no engine
    assert np.isnan(shares[1]).all()


@pytest.mark.parametrize(("n", "key"), [(1, "a"), (3, "k"), (29, "category")])
def test_drawings_have_room_for_any_number_of_classes(n: int, key: str) -> None:
    """Every name, id and share is on the confusion, and begins inside of it."""
    ids = [f"{key}{k}" for k in range(n)]
    taxonomy = Taxonomy.from_names(
        "city",
        {id: f"a-sound-of-the-city-with-a-long-name-{id}" for id in ids},
        {id: {"1": "x"} for id in ids},
    )
    shares, counts = np.full((n, n), 0.5), np.full(n, 7)
    svg = confusion("A system", shares, counts, taxonomy).decode()
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    assert size is not None
    width, height = map(float, size.groups())
    texts = [tuple(map(float, pair)) for pair in re.findall(r"<g [^>]*\(([-\d.]+) ([-\d.]+)\) scale", svg)]
    assert len(texts) > n * (n + 2)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in texts)
    for id in ids:
        assert f"<!-- {id} -->" in svg
    assert svg.count("<!-- 50 -->") == n * n


# -- refusals ---------------------------------------------------------------------------------------------


def test_never_evaluated(tmp_path: Path) -> None:
    """A run without evaluation is one sentence with the command that mends it."""
    run = make_run(tmp_path / "run", splits=())
    with pytest.raises(InputError, match=f"not evaluated; run `edgetag train evaluate {run}`"):
        write_report([run], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("recipe.json", b"{", "recipe.json: damaged"),
        ("recipe.json", b'{"name": 1}', "a recipe has a name and a seed"),
        ("provenance.json", b'{"edgetag": "0.1.0"}', "provenance.json: damaged: .*missing required field"),
        ("history.jsonl", b'{"net": "root"}\n{"n', "history.jsonl: damaged"),
        ("history.jsonl", b"\xff", "history.jsonl: damaged"),
        ("evaluation/validate/cnn_vggish1.npz", b"PK", "damaged .*edgetag train evaluate"),
        ("evaluation/validate/cnn_vggish1.npz", b"", "damaged .*edgetag train evaluate"),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    """A damaged file is named, with what to do."""
    run = make_run(tmp_path / "run")
    (run / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_run(run)


@pytest.mark.parametrize(
    "arrays",
    [
        {"filenames": ["a"], "truth": np.zeros((1, N_TAGS))},
        {"filenames": ["a"], "truth": np.zeros((1, 8)), "scores": np.zeros((1, 8))},
        {"filenames": ["a", "b"], "truth": np.zeros((1, N_TAGS)), "scores": np.zeros((1, N_TAGS))},
        {"filenames": ["a"], "truth": np.zeros((1, N_TAGS)), "scores": np.full((1, N_TAGS), 2.0)},
        {"filenames": [], "truth": np.zeros((0, N_TAGS)), "scores": np.zeros((0, N_TAGS))},
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, Any]) -> None:
    """An evaluation that lacks an array, or whose arrays do not fit, is damaged."""
    run = make_run(tmp_path / "run")
    np.savez(run / "evaluation" / "validate" / "cnn_vggish1.npz", **arrays)
    with pytest.raises(InputError, match=r"cnn_vggish1\.npz: damaged .*edgetag train evaluate"):
        read_run(run)


def test_no_run_at_all(tmp_path: Path) -> None:
    """No run, a folder that is none, another kind of file, a place that cannot be written."""
    run = make_run(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(InputError, match=r"\.html or a \.md file"):
        write_report([run], tmp_path / "report.pdf")
    with pytest.raises(InputError, match=r"recipe\.json is missing"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "report.html")
