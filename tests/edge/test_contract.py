"""The contract: taxonomy, events, manifest. What is pinned here may only change with a new version."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgetag.contract.errors import BundleError
from edgetag.contract.event import MESSAGES, TagsEvent, encode, json_schema, new_boot_id, timestamp
from edgetag.contract.manifest import MAX_FILES, File, Manifest
from edgetag.contract.taxonomy import MAX_CATEGORIES, SONYC_UST, Category, Tag, Taxonomy
from fakes import bundle_info, tags_event

SCHEMAS = Path(__file__).parents[2] / "deploy" / "schema"


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_published_schema_is_the_code(kind: str) -> None:
    """`deploy/schema/<topic>.json` is what the typed messages say (`make schema` writes it)."""
    assert json.loads((SCHEMAS / f"{kind}.json").read_text()) == json_schema(kind)


def test_an_event_is_valid_against_the_schema_and_survives_the_wire() -> None:
    """Encode, validate, decode: the same event."""
    event = tags_event(7, source="street.wav")
    Draft202012Validator(json_schema("tags")).validate(json.loads(encode(event)))
    assert msgspec.json.decode(encode(event), type=TagsEvent) == event


def test_a_microphones_event_has_no_source() -> None:
    """Absent, not null."""
    assert "source" not in json.loads(encode(tags_event()))


@pytest.mark.parametrize(
    ("field", "value"), [("seq", -1), ("verdict", "maybe"), ("start", "10:00"), ("schema", "2")]
)
def test_the_schema_refuses_what_is_no_event(field: str, value: object) -> None:
    """The schema has teeth: each of these is invalid."""
    event = json.loads(encode(tags_event())) | {field: value}
    assert not Draft202012Validator(json_schema("tags")).is_valid(event)


def test_info_is_valid_against_the_schema() -> None:
    """What a subscriber reads first."""
    Draft202012Validator(json_schema("info")).validate(json.loads(encode(bundle_info())))


@given(st.floats(0, 4e9))
def test_timestamps_are_rfc_3339_to_the_millisecond(utc_s: float) -> None:
    """One form, always in UTC."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp(utc_s))


def test_boot_ids_are_unique_ulids() -> None:
    """26 characters of Crockford's base 32, never twice."""
    ids = {new_boot_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", id) for id in ids)


@pytest.mark.shared
def test_the_taxonomy_is_the_datasets(shared: Path) -> None:
    """Ids, names and order equal the published `dcase-ust-taxonomy.yaml`."""
    published = yaml.safe_load((shared / "sonyc-ust" / "dcase-ust-taxonomy.yaml").read_text())
    coarse = [(str(id), name) for id, name in published["coarse"].items()]
    fine = [(f"{id}-{key}", name) for id, tags in published["fine"].items() for key, name in tags.items()]
    assert [(category.id, category.name) for category in SONYC_UST.categories] == coarse
    assert [(id, SONYC_UST.tags[id].name) for id in SONYC_UST.fine_ids] == fine


def test_single_child_categories_have_no_branch() -> None:
    """Coarse 3 and 8 have one fine tag each."""
    assert [category.id for category in SONYC_UST.categories if category.single] == ["3", "8"]
    assert SONYC_UST.branch_ids == ("1", "2", "4", "5", "6", "7")


@pytest.mark.parametrize(
    ("categories", "complaint"),
    [
        ((), "no categories"),
        ((Category("1", "a", ()),), "no fine tag"),
        ((Category("1", "a", (Tag("2-1", "b"),)),), "does not belong"),
        ((Category("1", "a", (Tag("1-1", "b"), Tag("1-1", "c"))),), "twice"),
        ((Category("1", "a", (Tag("1-x", "b"), Tag("1-X", "c"))),), "twice"),
        ((Category("1", "a", (Tag("1-1", "b"), Tag("1-2", "b"))),), "name 'b' is there twice"),
        ((Category("1", "a", (Tag("1-1", "b"),)), Category("2", "a", (Tag("2-1", "b"),))), "name 'a' is"),
        ((Category("1-1", "a", (Tag("1-1-1", "b"),)),), "coarse id '1-1' is not"),
        ((Category("1", "a", (Tag("1-1/2", "b"),)),), "fine id '1-1/2' is not"),
        ((Category("", "a", (Tag("-1", "b"),)),), "coarse id '' is not"),
        ((Category("é", "a", (Tag("é-1", "b"),)),), "coarse id 'é' is not"),
        ((Category("1", "a", (Tag("1-X", "b"),)),), '"X" tag only'),
        ((Category("1", "a\n", (Tag("1-1", "b"),)),), "cannot be printed"),
        *(((Category("1", name, (Tag("1-1", "b"),)),), "has the name") for name in ("", " a", "a/b", "a,b")),
        (tuple(Category(str(k), f"n{k}", (Tag(f"{k}-1", "b"),)) for k in range(30)), "at most 29 and 256"),
        ((Category("1", "a", tuple(Tag(f"1-{k}", f"n{k}") for k in range(256))),), "at most 29 and 256"),
    ],
)
def test_an_impossible_taxonomy_is_refused(categories: tuple[Category, ...], complaint: str) -> None:
    """A taxonomy that could not be numbered, published or written in a table never exists."""
    with pytest.raises(ValueError, match=complaint):
        Taxonomy("mine", categories)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "x" * 65, "Møre"])
def test_a_taxonomy_has_a_plain_name(name: str) -> None:
    """It stands in sentences, reports and messages."""
    with pytest.raises(ValueError, match="taxonomy's name"):
        Taxonomy(name, SONYC_UST.categories)


def test_the_largest_taxonomy_fits_into_a_bundle() -> None:
    """A root, an embedding and every branch in two variants, and golden windows."""
    assert 2 * (MAX_CATEGORIES + 2) + 1 <= MAX_FILES


def test_columns_and_places_are_those_of_the_ids() -> None:
    """Coarse first: whoever cuts an array by level, or looks a tag up, finds what `ids` says."""
    assert SONYC_UST.ids[SONYC_UST.columns["coarse"]] == SONYC_UST.coarse_ids
    assert SONYC_UST.ids[SONYC_UST.columns["fine"]] == SONYC_UST.fine_ids
    assert all(SONYC_UST.ids[place] == id for id, place in SONYC_UST.index.items())
    assert SONYC_UST.labels[SONYC_UST.index["7-X"]] == "7-X_other-unknown-human-voice"


@pytest.mark.parametrize("name", ["", "../root.onnx", "/etc/passwd", "a/b.onnx", ".hidden", "a\\b", ".."])
def test_a_bundles_files_have_plain_names(name: str) -> None:
    """Nothing in a manifest can point outside its directory."""
    with pytest.raises(ValueError, match="plain file name"):
        File(name, 1, "0" * 64)


FILE = {"file": "x", "size": 1, "sha256": "0" * 64}


def manifest(**changes: object) -> Manifest:
    stated = {
        "format": "edgetag.bundle/1",
        "name": "x",
        "version": "1",
        "created": "2026-11-22",
        "licence": "MIT",
        "summary": "",
        "taxonomy": msgspec.to_builtins(SONYC_UST),
        "frontend": {},
        "root": {"outputs": 37, "variants": {"int8": FILE}},
        "branches": {"1": {"outputs": 4, "variants": {"int8": FILE}}},
        "thresholds": {"1": 0.5},
        "golden": FILE | {"tolerance": {"int8": 0.02}},
    }
    return msgspec.convert(stated | changes, Manifest)


def test_a_consistent_manifest_passes() -> None:
    """The base of the cases below is fine, with 37 outputs and with 8."""
    manifest().check()
    manifest(root={"outputs": 8, "variants": {"int8": FILE}}).check()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"root": {"outputs": 36, "variants": {"int8": FILE}}}, "36 outputs"),
        (
            {"branches": {"3": {"outputs": 1, "variants": {"int8": FILE}}}},
            "refines no",
        ),
        (
            {"branches": {"1": {"outputs": 5, "variants": {"int8": FILE}}}},
            "5 outputs",
        ),
        ({"thresholds": {"9": 0.5}}, "unknown tags: 9"),
        ({"frontend": {"n_mels": 64}}, "n_mels=64"),
        ({"fusion": "concat"}, "fusion"),
        ({"root": {"outputs": 37, "variants": {"fp32": FILE}}}, "no variant"),
        ({"golden": FILE | {"tolerance": {"fp32": 0.001}}}, "no tolerance for int8"),
        ({"golden": FILE | {"file": "bundle.yaml", "tolerance": {"int8": 0.02}}}, "cannot be a bundle's"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, object], complaint: str) -> None:
    """Each statement is checked against the taxonomy and the others."""
    with pytest.raises(BundleError, match=complaint):
        manifest(**changes).check()
