"""Which bundle hears: the path asked for, else the installed one, else the starter; never a silent other."""

import re
from pathlib import Path

import msgspec
import pytest

from edgetag import Tagger
from edgetag.config import BundleSettings, RuntimeSettings, Settings
from edgetag.contract.errors import BundleError, InputError
from edgetag.loading import Loaded, Loader
from edgetag.state import state_directory
from edgetag.tagging.signature import create_keys
from edgetag.tagging.store import BundleStore
from fakes_bundle import write_bundle


def settings(path: Path | None = None, **bundle: str) -> Settings:
    stated = BundleSettings(path=None if path is None else str(path), **bundle)
    return Settings(bundle=stated)


def loader(state: Path, asked: Settings) -> Loader:
    return Loader(lambda: asked, state)


def bundle(folder: Path, p: float) -> Path:
    return write_bundle(folder / f"says-{p}", [p] * 37)


def test_where_nothing_is_installed_the_starter_hears(tmp_path: Path) -> None:
    """A new sensor works without being told anything."""
    loaded, refusal = loader(tmp_path, settings()).load_or_previous()
    assert (loaded.tagger.bundle.manifest.name, refusal) == ("starter", "")


def test_what_is_installed_hears_unless_a_path_is_asked_for(tmp_path: Path) -> None:
    """The settings are over the store, and are read anew for every load."""
    installed, asked = bundle(tmp_path, 0.1), bundle(tmp_path, 0.2)
    BundleStore(tmp_path / "state" / "bundles").install(installed)
    now = [settings()]
    loads = Loader(lambda: now[0], tmp_path / "state")
    assert loads.load().tagger.bundle.sha256 == Tagger.load(installed).bundle.sha256
    now[0] = settings(asked)
    assert loads.load().tagger.bundle.sha256 == Tagger.load(asked).bundle.sha256


def test_a_start_with_a_damaged_bundle_goes_back_to_the_one_before(tmp_path: Path) -> None:
    """And says so. While one is hearing already, there is nothing to go back to: the load is refused."""
    store = BundleStore(tmp_path / "bundles")
    first, second = (store.install(bundle(tmp_path, p)) for p in (0.1, 0.2))
    (second / "root.onnx").write_bytes(b"")
    loads = loader(tmp_path, settings())
    loaded, refusal = loads.load_or_previous()
    assert loaded.tagger.bundle.sha256 == Tagger.load(first).bundle.sha256
    assert "root.onnx is truncated" in refusal
    with pytest.raises(BundleError, match="truncated"):
        loads.load()


def test_without_one_before_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    """Above all the starter does not take its place: it hears other things."""
    folder = BundleStore(tmp_path / "bundles").install(bundle(tmp_path, 0.1))
    (folder / "root.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="truncated"):
        loader(tmp_path, settings()).load_or_previous()


def test_a_path_that_is_asked_for_is_that_or_nothing(tmp_path: Path) -> None:
    """No other bundle is heard in its place."""
    store = BundleStore(tmp_path / "bundles")
    for p in (0.1, 0.2):
        store.install(bundle(tmp_path, p))
    with pytest.raises(BundleError, match="there is no bundle"):
        loader(tmp_path, settings(tmp_path / "nowhere")).load_or_previous()
    current = store.current()
    assert current is not None
    (current / "root.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="truncated"):
        loader(tmp_path, settings(current)).load_or_previous()


def test_with_a_key_nothing_unsigned_hears(tmp_path: Path) -> None:
    """Not the installed bundle, and not the starter."""
    _, public = create_keys(tmp_path / "acme")
    signed = settings(public_key=str(public))
    with pytest.raises(BundleError, match="is not signed"):
        loader(tmp_path, signed).load_or_previous()
    BundleStore(tmp_path / "bundles").install(bundle(tmp_path, 0.1))
    with pytest.raises(BundleError, match="is not signed"):
        loader(tmp_path, signed).load_or_previous()
    gone = msgspec.structs.replace(signed, bundle=BundleSettings(public_key=str(tmp_path / "gone.pub")))
    with pytest.raises(InputError, match=re.escape("gone.pub")):
        loader(tmp_path, gone).load_or_previous()


def test_a_variant_that_is_asked_for_is_that_or_nothing(tmp_path: Path) -> None:
    """`fp32` and `int8` are orders; only `auto` is a question."""
    asked = Settings(bundle=BundleSettings(str(bundle(tmp_path, 0.1))), runtime=RuntimeSettings("int8"))
    with pytest.raises(BundleError, match="no int8 variant, only fp32"):
        loader(tmp_path, asked).load()
    auto = msgspec.structs.replace(asked, runtime=RuntimeSettings("auto"))
    assert loader(tmp_path, auto).load().tagger.bundle.variant == "fp32"


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/edgetag"}, "/var/lib/edgetag"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}, "/var/lib/a"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/x"}, "/x/edgetag"),
    ],
)
def test_the_state_directory(environment: dict[str, str], path: str) -> None:
    """systemd's word first, then the user's."""
    assert state_directory(environment) == Path(path)


def test_the_state_directory_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """At home; and where there is no home, where a service's would be."""
    monkeypatch.setenv("HOME", "/home/x")
    assert state_directory({}) == Path("/home/x/.local/state/edgetag")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert state_directory({}) == Path("/var/lib/edgetag")


def test_an_only_kind_is_told_as_its_category(tmp_path: Path) -> None:
    """
    8    ..####..    a sound
    8-1  ..####..    the same; one only where it has a rule of its own
    """
    tagger = Tagger.load(bundle(tmp_path, 0.5))
    told = Loaded(tagger, Settings()).rules().keys()
    assert tagger.thresholds.keys() - told == {"3-1", "8-1"}
    own = msgspec.convert({"events": {"tags": {"8-1": {"on": 0.9}}}}, Settings)
    assert Loaded(tagger, own).rules()["8-1"].on == 0.9
