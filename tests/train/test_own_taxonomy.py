"""A city with tags of its own: from `taxonomy.yaml` to what a subscriber gets, by configuration alone."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters, digits
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgetag.cli import main
from edgetag.contract.errors import InputError
from edgetag.contract.event import json_schema
from edgetag.contract.manifest import Manifest
from edgetag.contract.strict_yaml import dump_yaml, load_yaml
from edgetag.contract.taxonomy import SONYC_UST, Category, Tag, Taxonomy
from edgetag_train.data.annotations import read_annotations
from edgetag_train.data.training import prepare
from edgetag_train.recipe import read_recipe
from edgetag_train.taxonomy import identity, read_taxonomy, taxonomy_yaml
from fakes_dataset import HARBOUR, write_clips, write_harbour, write_streets, write_wav
from system.test_mosquitto import Mosquitto
from system.test_mosquitto import pytestmark as needs_mosquitto

TRAIN_README = Path(__file__).parents[2] / "train" / "README.md"
COARSE = ["1", "2", "quay"]
FINE = ["1-1", "1-2", "1-X", "2-1", "quay-crane", "quay-chain", "quay-X"]
TINY = [
    *("root.table=2", "root.precision=float32", "root.epochs=1", "branch.epochs=1"),
    *("data.augmentation.variants=0", "without_branches=['1']"),
]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Edgetag = Callable[..., Said]


@dataclass(frozen=True)
class City:
    """What its people have made: recordings and annotations, a run, a bundle."""

    data: Path
    run: Path
    bundle: Path
    cache: Path


def call(*arguments: object) -> int:
    """`edgetag …` in this process, which has torch already; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgetag", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture
def edgetag(capsys: pytest.CaptureFixture[str]) -> Iterator[Edgetag]:
    yield lambda *arguments: Said(call(*arguments), *capsys.readouterr())
    structlog.reset_defaults()  # `main` logs to this test's stderr, which ends with it


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    folder = tmp_path_factory.mktemp("harbour")
    city = City(*(folder / name for name in ("data", "run", "bundle", "cache")))
    write_harbour(city.data)
    source = ["--data", city.data, "--cache", city.cache]
    tiny = [part for value in TINY for part in ("--set", value)]
    assert (
        call("train", "fit", "hierarchical2_cnn", *source, "--out", city.run, *tiny, "--device", "cpu") == 0
    )
    assert call("train", "export", city.run, *source, "--out", city.bundle, "--only", "int8") == 0
    structlog.reset_defaults()
    return city


def refused(said: Said, *parts: str) -> None:
    """One sentence on stderr that names what matters, and the exit code of bad input."""
    last = said.err.strip().splitlines()[-1]
    assert said.code == 2, said.err
    assert last.startswith("edgetag: ")
    assert "Traceback" not in said.err
    assert all(part in last for part in parts), last


# -- from the file to the subscriber --------------------------------------------------------------------


def test_stats_count_the_citys_tags(edgetag: Edgetag, city: City) -> None:
    """Two recordings of each kind to train on, one to validate; categories before their kinds."""
    counted = json.loads(edgetag("train", "stats", city.data, "--json").out)
    assert counted["taxonomy"] == "harbour"
    assert list(counted["tags"]) == [*COARSE, *FINE]
    assert counted["tags"]["quay-crane"]["splits"]["train"] == {"present": 2, "absent": 4, "unknown": 0}
    assert counted["tags"]["quay-X"]["splits"]["validate"] == {"present": 0, "absent": 3, "unknown": 0}
    shown = [
        line.split()[0] for line in edgetag("train", "stats", city.data).out.splitlines() if line.strip()
    ]
    assert [word for word in shown if word in {*COARSE, *FINE}] == [
        "1", "1-1", "1-2", "1-X", "2", "2-1", "quay", "quay-crane", "quay-chain", "quay-X",
    ]  # fmt: skip


def test_a_run_remembers_whose_tags_it_tells(city: City) -> None:
    """The taxonomy, its name and hash; a branch where there are several kinds and the recipe has one."""
    assert read_taxonomy(city.run / "taxonomy.yaml") == read_taxonomy(city.data / "taxonomy.yaml")
    stated = json.loads((city.run / "provenance.json").read_text())["taxonomy"]
    assert stated == identity(read_taxonomy(city.data / "taxonomy.yaml"))
    nets = {path.stem for path in city.run.glob("*.pt")}
    assert nets == {"root-coarse", "root-fine", "branch-quay"}


def test_run_submission_and_report_speak_of_the_citys_tags(
    edgetag: Edgetag, city: City, tmp_path: Path
) -> None:
    """A submission has its columns and scores what the run scores; the report has no table beside it."""
    source, table = ["--data", city.data], tmp_path / "predictions.csv"
    options = ["--cache", city.cache, "--predictions", table]
    run = json.loads(edgetag("train", "evaluate", city.run, *source, *options).out)
    assert list(run["coarse"]["class_auprc"]) == COARSE
    assert run["fine"]["micro_auprc"] > 0
    header = table.read_text().splitlines()[0].split(",")
    assert header[1:] == [f"{id}_{NAMES[id]}" for id in (*FINE, *COARSE)]
    assert json.loads(edgetag("train", "evaluate", table, *source).out) == run
    assert edgetag("train", "report", city.run, "--out", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert all(f"{category} {name}" in page for category, name in (("1", "ship"), ("quay", "quay work")))
    assert "The paper&#x27;s Table 4 is of SONYC-UST&#x27;s" in page
    assert "published" not in page.replace("nothing that was published", "")


NAMES = {
    "1": "ship", "2": "gull", "quay": "quay-work", "1-1": "horn", "1-2": "engine", "1-X": "other-ship",
    "2-1": "gull", "quay-crane": "crane", "quay-chain": "chain", "quay-X": "other-quay-work",
}  # fmt: skip


def test_the_bundle_carries_the_taxonomy_and_scores_what_it_states(edgetag: Edgetag, city: City) -> None:
    """Verified, read by people and machines, asked by `evaluate` as a sensor asks it."""
    assert edgetag("bundle", "verify", city.bundle).code == 0
    shown = edgetag("bundle", "inspect", city.bundle).out
    assert "quay-work" in shown
    stated = json.loads(edgetag("bundle", "inspect", city.bundle, "--json").out)
    assert msgspec.convert(stated["taxonomy"], Taxonomy) == read_taxonomy(city.data / "taxonomy.yaml")
    found = json.loads(edgetag("train", "evaluate", city.bundle, "--data", city.data).out)
    assert list(found["coarse"]["class_auprc"]) == COARSE


def test_a_replay_prints_the_citys_tags(edgetag: Edgetag, city: City) -> None:
    """As JSON that the schema knows, and as a spreadsheet with its columns."""
    how = ["replay", city.data / "audio" / "2.wav", "--bundle", city.bundle]
    [event] = map(json.loads, edgetag(*how, "--format", "json").out.splitlines())
    Draft202012Validator(json_schema("tags")).validate(event)
    assert (list(event["coarse"]), list(event["fine"])) == (COARSE, FINE)
    assert event["fine"]["2-1"] == event["coarse"]["2"]  # a single kind copies its category
    [row] = csv.DictReader(edgetag(*how, "--format", "csv").out.splitlines())
    assert float(row["quay_quay-work"]) == pytest.approx(event["coarse"]["quay"], abs=1e-4)


@needs_mosquitto
def test_a_subscriber_gets_the_citys_tags(edgetag: Edgetag, city: City, tmp_path: Path) -> None:
    """Every message is what its schema says, and `info` names the tags. Of sounds there are those that the
    configuration's rules by tag let: here the quay's alone, at a threshold of its own."""
    rules = {id: {"min_duration_s": 60} for id in (*COARSE, *FINE)} | {"quay": {"on": 0.01}}
    (tmp_path / "edgetag.yaml").write_bytes(dump_yaml({"events": {"tags": rules}}))
    how = ["--bundle", city.bundle, "--config", tmp_path / "edgetag.yaml", "--sensor", "pier-1"]
    with Mosquitto(tmp_path) as broker:
        topics = {kind: f"sonyc/v1/pier-1/{kind}" for kind in ("info", "tags", "events")}
        for kind, topic in topics.items():
            broker.subscribe(kind, topic)
        url = f"mqtt://127.0.0.1:{broker.port}"
        assert edgetag("replay", city.data / "audio" / "2.wav", *how, "--mqtt", url).code == 0
        heard = {kind: broker.take(kind, 2 if kind == "events" else 1, topics[kind]) for kind in topics}
    for kind, messages in heard.items():
        for message in messages:
            Draft202012Validator(json_schema(kind)).validate(message.payload)
    [info], [tags], [start, end] = ([message.payload for message in heard[kind]] for kind in topics)
    assert info["taxonomy"] == "harbour"
    assert info["tags"] == NAMES
    assert list(tags["coarse"]) == COARSE
    assert [(one["kind"], one["tag"], one["name"]) for one in (start, end)] == [
        ("start", "quay", "quay-work"),
        ("end", "quay", "quay-work"),
    ]


def test_a_threshold_of_a_tag_that_the_bundle_lacks_is_refused(
    edgetag: Edgetag, city: City, tmp_path: Path
) -> None:
    """SONYC-UST's ids are none of the city's."""
    (tmp_path / "edgetag.yaml").write_text("events: {tags: {7-1: {on: 0.5}}}\n")
    how = ["--bundle", city.bundle, "--config", tmp_path / "edgetag.yaml"]
    said = edgetag("replay", city.data / "audio" / "0.wav", *how)
    refused(said, "events.tags.7-1 is no tag of the bundle's; it has 1, 2, quay, 1-1")


# -- one taxonomy at a time -----------------------------------------------------------------------------


@pytest.fixture
def renamed(city: City, tmp_path: Path) -> Path:
    """The same recordings, annotated with as many tags, one of which is another."""
    data = tmp_path / "renamed"
    shutil.copytree(city.data, data)
    for name in ("taxonomy.yaml", "annotations.csv"):
        (data / name).write_text((data / name).read_text().replace("chain", "winch"))
    return data


def test_a_run_is_not_gone_on_with_for_other_tags(edgetag: Edgetag, city: City, renamed: Path) -> None:
    tiny = [part for value in TINY for part in ("--set", value)]
    how = ["--data", renamed, "--out", city.run, *tiny, "--device", "cpu", "--cache", city.cache, "--resume"]
    said = edgetag("train", "fit", "hierarchical2_cnn", *how)
    refused(said, "was begun with the tags of harbour (10 tags, sha256", "choose another folder")


def test_a_run_is_not_scored_nor_exported_for_other_tags(
    edgetag: Edgetag, city: City, renamed: Path, tmp_path: Path
) -> None:
    source = ["--data", renamed, "--cache", city.cache]
    said = edgetag("train", "evaluate", city.run, *source)
    refused(said, "tells the tags of harbour (10 tags", "fit another run")
    said = edgetag("train", "export", city.run, *source, "--out", tmp_path / "bundle")
    refused(said, "tells the tags of harbour (10 tags", "fit another run")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_not_scored_for_other_tags(edgetag: Edgetag, city: City, renamed: Path) -> None:
    said = edgetag("train", "evaluate", city.bundle, "--data", renamed)
    refused(
        said, "the bundle hierarchical2_cnn@sha256:", "tells the tags of harbour", "the data has those of"
    )


def test_another_runs_root_is_not_taken_for_other_tags(
    edgetag: Edgetag, city: City, renamed: Path, tmp_path: Path
) -> None:
    tiny = [part for value in TINY for part in ("--set", value)]
    how = ["--data", renamed, "--out", tmp_path / "run", *tiny, "--device", "cpu", "--root", city.run]
    refused(edgetag("train", "fit", "hierarchical2_cnn", *how), "tells the tags of harbour")


def test_a_run_whose_taxonomy_was_changed_is_refused(edgetag: Edgetag, city: City, tmp_path: Path) -> None:
    """Its nets tell what they were taught, whatever a file says later."""
    run = tmp_path / "run"
    shutil.copytree(city.run, run)
    file = run / "taxonomy.yaml"
    file.write_text(file.read_text().replace("chain", "winch"))
    said = edgetag("train", "evaluate", run, "--data", city.data, "--cache", city.cache)
    refused(said, "is not the taxonomy that", "was begun with; restore it")


def test_a_net_of_another_taxonomys_run_is_refused(
    edgetag: Edgetag, city: City, renamed: Path, tmp_path: Path
) -> None:
    """As many outputs, but other tags."""
    run = tmp_path / "run"
    shutil.copytree(city.run, run)
    taxonomy = read_taxonomy(renamed / "taxonomy.yaml")
    (run / "taxonomy.yaml").write_bytes(taxonomy_yaml(taxonomy))
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(provenance | {"taxonomy": identity(taxonomy)}))
    said = edgetag("train", "evaluate", run, "--data", renamed, "--cache", city.cache)
    refused(said, "root-coarse.pt tells other tags than its run")


def test_a_report_is_of_one_taxonomy(edgetag: Edgetag, city: City, renamed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(city.run, run)
    edgetag("train", "evaluate", city.run, "--data", city.data, "--cache", city.cache)
    shutil.copytree(city.run / "evaluation", run / "evaluation", dirs_exist_ok=True)
    taxonomy = read_taxonomy(renamed / "taxonomy.yaml")
    (run / "taxonomy.yaml").write_bytes(taxonomy_yaml(taxonomy))
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(provenance | {"taxonomy": identity(taxonomy)}))
    said = edgetag("train", "report", city.run, run, "--out", tmp_path / "report.html")
    refused(said, "a report sets runs of one taxonomy side by side")


def test_what_is_sonycs_alone_says_so(edgetag: Edgetag, city: City, tmp_path: Path) -> None:
    """The starter's recipe states ids of SONYC-UST's tags, YAMNet's classes speak for them."""
    how = ["--data", city.data, "--out", tmp_path / "run", "--device", "cpu"]
    refused(
        edgetag("train", "fit", "starter", *how), "recipe starter is for the tags of sonyc-ust-v1, the data's"
    )
    (tmp_path / "yamnet.tflite").touch()
    taught = ["--set", "data.teacher_share=0.5", "--teacher", tmp_path / "yamnet.tflite"]
    said = edgetag("train", "fit", "cnn", *how, *taught, "--cache", city.cache)
    refused(said, "YAMNet speaks for SONYC-UST's coarse tags only, the data's are harbour's")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "without_branches=['2']",
            "without_branches names '2', which has no branch in harbour; there are 1, quay",
        ),
        (
            "thresholds={'7-1': 0.9}",
            "thresholds name '7-1', which is no tag of harbour; there are coarse, fine and",
        ),
    ],
)
def test_a_recipe_is_checked_against_the_tags(
    edgetag: Edgetag, city: City, tmp_path: Path, override: str, sentence: str
) -> None:
    """Before anything is computed."""
    how = ["--data", city.data, "--out", tmp_path / "run", "--set", override]
    refused(edgetag("train", "fit", "cnn", *how), sentence)
    assert not (tmp_path / "run").exists()


def test_every_recipe_but_the_starters_is_for_any_tags() -> None:
    """What ships is not bound to SONYC-UST; the starter's recipe says that it is."""
    harbour = Taxonomy.from_names("harbour", {"a": "ship"}, {"a": {"b": "horn"}})
    for name in ("cnn", "cnn_vggish", "hierarchical1", "hierarchical2", "hierarchical3", "hierarchical1_cnn"):
        read_recipe(name).check(harbour)
        assert set(read_recipe(name).thresholds_of(harbour)) == {"a", "a-b"}
    with pytest.raises(InputError, match="sonyc-ust-v1"):
        read_recipe("starter").check(harbour)
    read_recipe("starter").check(SONYC_UST)


def test_thresholds_of_a_citys_recipe_are_by_its_ids() -> None:
    """By tag, or for all of a level, 0.5 where none is stated."""
    recipe = read_recipe("cnn", ["thresholds={fine: 0.4, quay-X: 0.9}"])
    harbour = Taxonomy.from_names("harbour", {"quay": "quay"}, {"quay": {"1": "crane", "X": "other"}})
    recipe.check(harbour)
    assert recipe.thresholds_of(harbour) == {"quay": 0.5, "quay-1": 0.4, "quay-X": 0.9}


def test_scenes_of_a_city_are_kept_apart_and_sonycs_where_they_were(city: City, tmp_path: Path) -> None:
    """Of clips by its labels; scenes that were kept before there were other taxonomies are found again."""
    sonyc, harbour = tmp_path / "sonyc", tmp_path / "harbour"
    shutil.copytree(city.data, harbour)
    (harbour / "clips").mkdir()
    rows = [("horn.wav", "1_ship", "horn"), ("hiss.wav", "background", "hiss")]
    for name, _, _ in rows:
        write_wav(harbour / "clips" / name, np.random.default_rng(3).normal(0, 0.1, 44_100))
    with (harbour / "clips" / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "coarse", "fine", "recording_id", "licence", "source_repo"])
        writer.writerows([(*row, row[2], "CC0 1.0", "made here") for row in rows])
    write_streets(sonyc, ("train",))
    write_clips(sonyc / "clips")
    recipe = read_recipe("cnn", ["data.n_scenes=2", "data.recordings=false", "data.augmentation.variants=0"])
    made = {data: prepare(recipe.data, data, data / "cache", validated=False) for data in (sonyc, harbour)}
    assert made[sonyc].train.labels.shape == (2, 37)
    assert made[harbour].train.labels.shape == (2, 10)
    for data in made:
        [stated] = (json.loads(file.read_text()) for file in data.glob("cache/labels-*/*/made_from.json"))
        assert stated.get("taxonomy") == (None if data == sonyc else identity(made[data].taxonomy))


def test_a_clip_of_another_citys_is_refused(city: City, tmp_path: Path) -> None:
    """In a sentence that says what a label looks like here."""
    shutil.copytree(city.data, tmp_path / "data")
    write_clips(tmp_path / "data" / "clips")
    recipe = read_recipe("cnn", ["data.n_scenes=2"])
    with pytest.raises(InputError, match=r"'1_engine' is no coarse label; e\.g\. quay_quay-work is"):
        prepare(recipe.data, tmp_path / "data", tmp_path / "cache", validated=False)


# -- the file -------------------------------------------------------------------------------------------

keys = st.text(ascii_letters + digits, min_size=1, max_size=16)
printable = st.characters(
    exclude_categories=["C", "Z"], include_characters=" ", exclude_characters=',;"/\\+#'
)
names = st.text(printable, min_size=1, max_size=64).map(str.strip).filter(bool)


@st.composite
def taxonomies(draw: st.DrawFn) -> Taxonomy:
    """Any that is possible: some with an "X" tag, some categories of a single kind."""
    coarse = draw(st.lists(keys, min_size=1, max_size=6, unique_by=str.casefold))
    coarse_names = draw(st.lists(names, min_size=len(coarse), max_size=len(coarse), unique=True))
    categories = []
    for id, name in zip(coarse, coarse_names, strict=True):
        kinds = keys.filter(lambda key: key not in "Xx")
        below = draw(st.lists(kinds, min_size=1, max_size=4, unique_by=str.casefold))
        below += draw(st.sampled_from([[], ["X"]]))
        fine_names = draw(st.lists(names, min_size=len(below), max_size=len(below), unique=True))
        fine = tuple(Tag(f"{id}-{key}", text) for key, text in zip(below, fine_names, strict=True))
        categories.append(Category(id, name, fine))
    name = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
    return Taxonomy(name, tuple(categories))


@given(taxonomies())
@settings(max_examples=30)
def test_every_taxonomy_survives_its_file_and_a_bundles_manifest(
    tmp_path_factory: pytest.TempPathFactory, taxonomy: Taxonomy
) -> None:
    """File, taxonomy, manifest: the same tags in the same order, whatever YAML would like to make of them."""
    file = tmp_path_factory.getbasetemp() / "taxonomy.yaml"
    file.write_bytes(taxonomy_yaml(taxonomy))
    read = read_taxonomy(file)
    assert read == taxonomy
    file_stated = {"file": "x", "size": 1, "sha256": "0" * 64}
    stated = {
        "format": "edgetag.bundle/1",
        "name": "x",
        "version": "1",
        "created": "2026-11-26",
        "licence": "MIT",
        "summary": "",
        "taxonomy": msgspec.to_builtins(read),
        "frontend": {},
        "root": {"outputs": len(read.ids), "variants": {"fp32": file_stated}},
        "branches": {},
        "thresholds": dict.fromkeys(read.ids, 0.5),
        "golden": file_stated | {"tolerance": {"fp32": 0.001}},
    }
    manifest = msgspec.convert(stated, Manifest)
    manifest.check()
    again = msgspec.convert(load_yaml(dump_yaml(msgspec.to_builtins(manifest))), Manifest)
    assert again.taxonomy == taxonomy
    assert again.all_thresholds.keys() == set(taxonomy.ids)


def test_sonycs_own_file_is_one_with_a_name(tmp_path: Path) -> None:
    """What is read from its form is the constant."""
    (tmp_path / "taxonomy.yaml").write_bytes(taxonomy_yaml(SONYC_UST))
    assert read_taxonomy(tmp_path / "taxonomy.yaml") == SONYC_UST


@pytest.mark.shared
def test_the_published_file_needs_a_name_only(shared: Path, tmp_path: Path) -> None:
    """`dcase-ust-taxonomy.yaml` as it was published, and a line."""
    published = (shared / "sonyc-ust" / "dcase-ust-taxonomy.yaml").read_text()
    (tmp_path / "taxonomy.yaml").write_text(f"name: sonyc-ust-v1\n{published}")
    assert read_taxonomy(tmp_path / "taxonomy.yaml") == SONYC_UST


def test_the_readmes_example_is_the_one_that_is_tested() -> None:
    """Word for word."""
    assert f"```yaml\n{HARBOUR}```" in TRAIN_README.read_text()


def test_the_readmes_table_is_read_as_it_says(tmp_path: Path) -> None:
    """A ferry with gulls, a crane whose chain nobody judged, and to validate a horn beside a crane."""
    [table] = re.findall(r"^```csv\n(.*?)^```", TRAIN_README.read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "taxonomy.yaml").write_text(HARBOUR)
    (tmp_path / "annotations.csv").write_text(table)
    labels = read_annotations(tmp_path / "annotations.csv")
    told = {
        name: {id: vote for id, vote in zip(NAMES, votes, strict=True) if vote != 0}
        for name, votes in zip(labels.filenames, labels.fraction.tolist(), strict=True)
    }
    unknown = pytest.approx(np.nan, nan_ok=True)
    assert told == {
        "ferry.wav": {"1": 1, "2": 1, "1-2": 1, "2-1": 1},
        "crane.wav": {"quay": 1, "quay-crane": 1, "quay-chain": unknown},
        "night.wav": {"1": 1, "quay": 1, "1-1": 1, "quay-crane": 1},
    }
    assert dict(zip(labels.filenames, zip(labels.split, labels.verified, strict=True), strict=True)) == {
        "ferry.wav": ("train", False),
        "crane.wav": ("train", False),
        "night.wav": ("validate", True),
    }


GOOD = {"name": "h", "coarse": {1: "ship"}, "fine": {1: {1: "horn"}}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1\n", "the keys name, coarse, fine are expected, found list"),
        ("", "the keys name, coarse, fine are expected, found NoneType"),
        ("coarse: {1: a}\nfine: {1: {1: b}}\n", "are expected, found coarse, fine"),
        ("name: h\nname: h\n", "a key is there twice"),
        ("name: [h]\ncoarse: {1: a}\nfine: {1: {1: b}}\n", r"name is text, found \['h'\]"),
        ("name: 2026\ncoarse: {1: a}\nfine: {1: {1: b}}\n", "name is text, found 2026; put it in quotes"),
        ("name: h\ncoarse: [a]\nfine: {1: {1: b}}\n", r"coarse is a map of ids, found \['a'\]"),
        ("name: h\ncoarse: {}\nfine: {}\n", "has no categories"),
        (
            "name: h\ncoarse: {1: a}\nfine: {}\n",
            r"category 1 has no fine tags; a single kind is one, \{1: a\}",
        ),
        ("name: h\ncoarse: {1: a}\nfine: {1: {}}\n", "category '1_a' has no fine tag"),
        ("name: h\ncoarse: {1: a}\nfine: {1: b}\n", r"fine\.1 is a map of ids, found 'b'"),
        (
            "name: h\ncoarse: {1: a}\nfine: {1: {1: b}, 2: {1: c}}\n",
            "fine.2 belongs to no category; coarse has 1",
        ),
        (
            "name: h\ncoarse: {1: a, '1': b}\nfine: {1: {1: b}}\n",
            "coarse has the id 1 twice, as a number and as",
        ),
        ("name: h\ncoarse: {1: a}\nfine: {1: {1: b, '1': c}}\n", "fine.1 has the id 1 twice"),
        ("name: h\ncoarse: {1: a, 1: b}\nfine: {1: {1: b}}\n", "a key is there twice"),
        (
            "name: h\ncoarse: {1.5: a}\nfine: {1.5: {1: b}}\n",
            "coarse has the id 1.5; an id is a whole number or",
        ),
        (
            "name: h\ncoarse: {no: a}\nfine: {no: {1: b}}\n",
            "coarse has the id False; an id is a whole number or",
        ),
        ("name: h\ncoarse: {-1: a}\nfine: {-1: {1: b}}\n", "coarse id '-1' is not 1 to 16 letters"),
        ("name: h\ncoarse: {a/b: a}\nfine: {a/b: {1: b}}\n", "coarse id 'a/b' is not 1 to 16 letters"),
        ("name: h\ncoarse: {1: on}\nfine: {1: {1: b}}\n", "coarse.1 is text, found True; a name that looks"),
        ("name: h\ncoarse: {1: 7}\nfine: {1: {1: b}}\n", "coarse.1 is text, found 7; a name that looks"),
        ("name: h\ncoarse: {1: a}\nfine: {1: {1: 'b,c'}}\n", "tag 1-1 has the name 'b,c'; expected"),
        ("name: h\ncoarse: {1: a}\nfine: {1: {1: b, 2: b}}\n", "the name 'b' is there twice"),
        ("name: h\ncoarse: {1: a}\nfine: {1: {X: b}}\n", 'has an "X" tag only'),
        ("name: h\ncoarse: &a {1: a}\nfine: {1: *a}\n", "aliases are not allowed"),
        ("name: 'h h'\ncoarse: {1: a}\nfine: {1: {1: b}}\n", "the taxonomy's name is 'h h'"),
        ("{", "expected"),
    ],
)
def test_a_taxonomy_that_is_none_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """One sentence for each fault, which begins with the file."""
    (tmp_path / "taxonomy.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence) as refusal:
        read_taxonomy(tmp_path / "taxonomy.yaml")
    assert str(refusal.value).startswith(f"{tmp_path / 'taxonomy.yaml'}: ")
    assert len(str(refusal.value).splitlines()) == 1


def test_too_many_tags_are_refused(tmp_path: Path) -> None:
    """A bundle has 64 files."""
    coarse = {k: f"n{k}" for k in range(30)}
    stated = GOOD | {"coarse": coarse, "fine": {k: {1: name} for k, name in coarse.items()}}
    (tmp_path / "taxonomy.yaml").write_bytes(dump_yaml(stated))
    with pytest.raises(InputError, match="has 30 categories and 60 tags; at most 29 and 256"):
        read_taxonomy(tmp_path / "taxonomy.yaml")


def test_a_taxonomy_that_cannot_be_read_is_not_passed_over(edgetag: Edgetag, tmp_path: Path) -> None:
    """A link to nowhere, or a folder, is no dataset of SONYC-UST's."""
    write_streets(tmp_path, ("train",))
    (tmp_path / "taxonomy.yaml").symlink_to(tmp_path / "nowhere")
    refused(edgetag("train", "stats", tmp_path), "taxonomy.yaml cannot be read (No such file")
    (tmp_path / "taxonomy.yaml").unlink()
    (tmp_path / "taxonomy.yaml").mkdir()
    refused(edgetag("train", "stats", tmp_path), "taxonomy.yaml cannot be read (Is a directory)")


def test_annotations_and_taxonomy_must_fit(edgetag: Edgetag, city: City, tmp_path: Path) -> None:
    """A column too few or too many is named, and where tags are stated is said."""
    shutil.copytree(city.data, tmp_path / "data")
    (tmp_path / "data" / "taxonomy.yaml").unlink()
    said = edgetag("train", "stats", tmp_path / "data")
    refused(
        said, "missing columns: 1_engine_presence", "other tags are stated in taxonomy.yaml beside the table"
    )
    write_streets(tmp_path / "data", ("train",))
    shutil.copy(city.data / "taxonomy.yaml", tmp_path / "data")
    refused(
        edgetag("train", "stats", tmp_path / "data"), "missing columns: 1_ship_presence", "with the tags of"
    )
    (tmp_path / "data" / "taxonomy.yaml").write_text(HARBOUR.replace("chain: chain, ", ""))
    shutil.copy(city.data / "annotations.csv", tmp_path / "data")
    said = edgetag("train", "stats", tmp_path / "data")
    refused(said, "columns of tags that harbour does not have: quay-chain_chain_presence")
