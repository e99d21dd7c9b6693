"""`edgetag train …` and `edgetag fetch …` as their users call them, from a table to a report and a bundle."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import structlog
import typer

from edgetag import Tagger
from edgetag.cli import main
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.cli import app as train_app
from edgetag_train.fetch_cli import app as fetch_app
from edgetag_train.predictions import read_predictions
from edgetag_train.sentences import exported, fitted
from fakes_dataset import write_clips, write_streets

TRAIN_README = Path(__file__).parents[2] / "train" / "README.md"
TINY = [
    *("--set", "root.table=2", "--set", "root.precision=float32", "--set", "root.epochs=1"),
    *("--set", "data.augmentation.variants=0", "--device", "cpu"),
]

BRANCHES = ["--set", "branch.epochs=1"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Edgetag = Callable[..., Said]


@pytest.fixture
def edgetag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Edgetag]:
    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["edgetag", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    yield run
    structlog.reset_defaults()  # `main` logs to this test's stderr, which ends with it


def refused(said: Said, code: int, *parts: str) -> None:
    """One sentence on stderr that names what matters, and the documented exit code."""
    last = said.err.strip().splitlines()[-1]
    assert said.code == code, said.err
    assert last.startswith("edgetag: ")
    assert "Traceback" not in said.err
    assert all(part in last for part in parts), last


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fine = ("1-1", "1-2", "1-3", "1-X", "5-1", "5-2", "5-3", "5-4", "5-X")
    write_streets(folder, ("train",) * 6 + ("validate",) * 4, fine=fine)
    return folder


def test_from_a_table_to_a_report_and_a_bundle(
    edgetag: Edgetag, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that train/README.md describes, on a city's own ten recordings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counted = json.loads(edgetag("train", "stats", data, "--json").out)
    assert "train" in json.dumps(counted)
    assert "1 engine" in edgetag("train", "stats", data).out

    run, source = tmp_path / "run", ["--data", data]
    begun = edgetag("train", "fit", "hierarchical2_cnn", *source, "--out", run, *TINY, *BRANCHES)
    assert begun.code == 0, begun.err
    assert {path.stem for path in run.glob("*.pt")} == {"root-coarse", "root-fine", "branch-1", "branch-5"}

    table = tmp_path / "predictions.csv"
    options = ["--json", tmp_path / "figures.json", "--predictions", table]
    evaluated = edgetag("train", "evaluate", run, *source, *options)
    figures = json.loads(evaluated.out)
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    for level in ("coarse", "fine"):
        assert {"micro_auprc", "micro_f1", "macro_auprc", "class_auprc"} <= figures[level].keys()
    assert len(read_predictions(table, SONYC_UST).filenames) == 4
    submitted = json.loads(edgetag("train", "evaluate", table, *source).out)
    assert submitted == figures

    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "my-bundle"
    both = edgetag(*advised(begun, f"{run} is finished; next: "), "--force")
    assert both.code == 0, both.err
    assert {path.name for path in bundle.glob("root.*")} == {"root.fp32.onnx", "root.int8.onnx"}
    only = edgetag("train", "export", run, *source, "--out", bundle, "--only", "fp32")
    assert only.code == 0, only.err
    assert {path.name for path in bundle.glob("root.*")} == {"root.fp32.onnx"}
    published = json.loads(edgetag("train", "evaluate", bundle, *source).out)
    assert published["recordings"] == 4
    assert edgetag("train", "report", run, "--out", tmp_path / "report.html").code == 0
    assert "Hierarchical2" in (tmp_path / "report.html").read_text()
    size_mb = sum(file.stat().st_size for file in bundle.glob("*.[on]*")) / 1e6
    stated = json.loads(edgetag("bundle", "inspect", bundle, "--json").out)["metrics"]["coarse_micro_auprc"]
    said = (
        f"{bundle}: 3 nets in fp32, {size_mb:.1f} MB; coarse micro AUPRC {stated:.2f} on 4 recordings; try: "
    )
    command = [{"RECORDING": str(data / "audio" / "0.wav")}.get(word, word) for word in advised(only, said)]
    assert json.loads(edgetag(*command).out)["verdict"] == "tagged"


def advised(said: Said, before: str) -> list[str]:
    """The command that a step's last sentence ends with, less `edgetag`."""
    last = said.err.splitlines()[-1]
    assert last.startswith(before), last
    name, *words = shlex.split(last.removeprefix(before))
    assert name == "edgetag"
    return words


def test_the_next_command_has_what_this_one_was_given(tmp_path: Path) -> None:
    """Every option that `export` needs as `fit` did, in a shell's quotes, however folders are named."""
    names = ("it's a run", "my data", "an embedding", "$cache")
    run, data, embedding, cache = folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
    sentence = fitted(run, data, embedding, cache, skip_bad=True)
    export = typer.main.get_command(train_app).commands["export"]
    _, group, name, *words = shlex.split(sentence.partition("; next: ")[2])
    given = {option: str(value) for option, value in export.make_context(name, words).params.items()}
    assert (group, name) == ("train", "export")
    expected = {"run": run, "data": data, "embedding": embedding, "cache": cache, "skip_bad": True}
    assert {option: str(value) for option, value in expected.items()}.items() <= given.items()
    plain = fitted(run, data, None, None, skip_bad=False)
    assert not any(option in plain for option in ("--embedding", "--cache", "--skip-bad"))


@pytest.mark.parametrize(
    ("auprc", "n", "said"),
    [
        (None, 1, "no coarse tag in 1 recording to score it by; try: edgetag replay RECORDING"),
        (0.7368, 63, "coarse micro AUPRC 0.74 on 63 recordings; try: edgetag replay RECORDING"),
    ],
)
def test_a_bundle_that_could_not_be_scored_is_told_as_such(auprc: float | None, n: int, said: str) -> None:
    """Of the bundle that ships, whose nets are an embedding, a root and five branches in eight bits."""
    shipped = Tagger.load(variant="int8").bundle.manifest
    metrics = {"recordings": n, "coarse_micro_auprc": auprc}
    sentence = exported(Path("b"), msgspec.structs.replace(shipped, metrics=metrics))
    assert sentence.startswith("b: 7 nets in ")
    assert sentence.endswith(f"{said} --bundle b")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fit", "unheard-of"], ["unheard-of", "hierarchical1"]),
        (["fit", "cnn_vggish"], ["--embedding"]),
        (["fit", "cnn", "--embedding", "."], ["nets take no embedding"]),
        (["fit", "cnn", "--set", "root.epochs=0"], ["root.epochs"]),
        (["fit", "cnn", "--set", "data.n_scenes=4"], ["manifest.csv"]),
        (["fit", "cnn_vggish", "--embedding", "/dev/null"], ["/dev/null"]),
        (["fit", "starter", "--set", "fusion=none"], ["data.teacher_share", "give it with --teacher"]),
        (["fit", "cnn", "--set", "data.teacher_share=0.5"], ["give it with --teacher"]),
        (["fit", "cnn", "--teacher", "/dev/null"], ["has no teacher_share", "leave out --teacher"]),
        (["fit", "cnn", "--set", "data.teacher_share=1.5"], ["data.teacher_share"]),
    ],
)
def test_a_fit_that_cannot_be_is_one_sentence(
    edgetag: Edgetag, data: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    """Before anything is computed."""
    refused(edgetag("train", *arguments, "--data", data, "--out", tmp_path / "run"), 2, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--mixtures", "7"], ["7 mixtures teach nothing"]),
        ([], ["LiteRT is not installed", "edgetag[teach]"]),
    ],
)
def test_a_lesson_that_cannot_be_is_one_sentence(
    edgetag: Edgetag,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    parts: list[str],
) -> None:
    """Before anything is computed."""
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    command = ["train", "teach", tmp_path / "embedding", "--data", data, "--teacher", "/dev/null", *arguments]
    refused(edgetag(*command, "--cache", tmp_path / "cache"), 2, *parts)


def test_missing_recordings_are_listed_at_once(edgetag: Edgetag, data: Path, tmp_path: Path) -> None:
    """All of them in one sentence; --skip-bad goes on without."""
    write_streets(tmp_path, ("train",) * 5 + ("validate",) * 2)
    for name in ("1.wav", "3.wav"):
        (tmp_path / "audio" / name).unlink()
    (tmp_path / "audio" / "4.wav").write_bytes(b"RIFF, but no more")
    command = ["train", "fit", "cnn", "--data", tmp_path, "--out", tmp_path / "run", *TINY]
    command += ["--cache", tmp_path / "cache"]
    refused(edgetag(*command), 2, "3", "1.wav", "3.wav", "4.wav", "--skip-bad")
    assert edgetag(*command, "--skip-bad").code == 0


def test_what_cannot_be_evaluated_is_one_sentence(edgetag: Edgetag, data: Path, tmp_path: Path) -> None:
    """A folder that is no run, a split that is not there, a table that misses recordings."""
    refused(edgetag("train", "evaluate", tmp_path, "--data", data), 2, "no run directory")
    refused(edgetag("train", "report", tmp_path, "--out", tmp_path / "x.html"), 2)
    table = tmp_path / "predictions.csv"
    labels = [SONYC_UST.tags[id].label for id in SONYC_UST.ids]
    rows = [["audio_filename", *labels], ["6.wav", *map(str, np.full(37, 0.5))]]
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")
    refused(edgetag("train", "evaluate", table, "--data", data), 2, "3 of the 4", "7.wav")
    refused(edgetag("train", "evaluate", table, "--data", data, "--split", "autumn"), 2, "autumn", "validate")


def test_scenes_are_scored_on_clips_never_heard(edgetag: Edgetag, tmp_path: Path) -> None:
    """Where too few clips can be held out, it is said."""
    write_clips(tmp_path / "clips")
    write_streets(tmp_path / "sonyc")
    source = ["--data", tmp_path, "--cache", tmp_path / "cache"]
    few = [*TINY, "--set", "data.n_scenes=4"]
    assert edgetag("train", "fit", "cnn", *source, "--out", tmp_path / "run", *few).code == 0
    scenes = edgetag("train", "evaluate", tmp_path / "run", *source, "--split", "scenes")
    refused(scenes, 2, "too few clips")
    both = json.loads(edgetag("train", "evaluate", tmp_path / "run", *source).out)
    assert set(both) == {"cnn1", "cnn2"}


def commands_of_the_readme() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", TRAIN_README.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("edgetag ")]


@pytest.mark.parametrize("line", commands_of_the_readme())
def test_the_readmes_commands_are_commands(line: str) -> None:
    """Each names a command and options that exist."""
    _, name, *words = shlex.split(line, comments=True)
    if name == "replay":
        return
    group = typer.main.get_command({"train": train_app, "fetch": fetch_app}[name])
    command = group.commands[words[0]]
    options = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words if word.startswith("--")} <= options
