"""The configuration file: typed, complete, and nothing in it is ignored."""

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetag.config import RuntimeSettings, Settings, read_settings
from edgetag.contract.errors import InputError
from edgetag.contract.strict_yaml import load_yaml


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "bundle: {}\nruntime: {}"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, text: str) -> None:
    """Nothing has to be written down."""
    (tmp_path / "edgetag.yaml").write_text(text)
    assert read_settings(tmp_path / "edgetag.yaml") == Settings()


def test_the_commented_file_is_complete_and_all_defaults() -> None:
    """`deploy/edgetag.yaml` names every setting, each with the value it has anyway."""
    path = Path(__file__).parents[2] / "deploy" / "edgetag.yaml"
    assert read_settings(path) == Settings()
    assert load_yaml(path.read_bytes()) == msgspec.to_builtins(Settings())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Some settings given, the others default."""
    (tmp_path / "edgetag.yaml").write_text("runtime: {variant: fp32}\nbundle: {public_key: /etc/x.pub}\n")
    settings = read_settings(tmp_path / "edgetag.yaml")
    assert settings.runtime == RuntimeSettings("fp32", 1)
    assert (settings.bundle.path, settings.bundle.public_key) == (None, "/etc/x.pub")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runtime: {variant: int4}", "int4"),
        ("runtime: {threads: 0}", "threads"),
        ("runtime: {thread: 1}", "thread"),
        ("runtimes: {}", "runtimes"),
        ("- 1", "object"),
        ("bundle: {path: 7}", "path"),
        ('bundle: {path: "a\\0b"}', "path"),
        ('bundle: {public_key: ""}', "public_key"),
        ("#" * 2**16 + "\n", "longer than"),
        ("bundle: {path: a, path: b}", "twice"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("{", "line 1"),
        ('{"a\\nb": 1}', "unknown field"),
        ("\0", "unacceptable character"),
    ],
)
def test_what_is_not_understood_is_refused_with_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    """A setting with a typing error is not a setting left out."""
    file = tmp_path / "edgetag.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=sentence) as refusal:
        read_settings(file)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The reason is in the sentence."""
    with pytest.raises(InputError, match=r"edgetag\.yaml cannot be read \(No such file"):
        read_settings(tmp_path / "edgetag.yaml")
    with pytest.raises(InputError, match="is a folder, not a configuration file"):
        read_settings(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        read_settings(tmp_path / "pipe")


@given(st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!|>'\"#?%@`~ \n\tabundle0123.eE+", max_size=80))
def test_no_file_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: bytes | str) -> None:
    """Settings, or a refusal."""
    file = tmp_path_factory.getbasetemp() / "edgetag.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.suppress(InputError):
        assert isinstance(read_settings(file), Settings)
