"""The bundle: the sensor's own loads, says what it said when it was made, and is fast enough."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgetag.contract.errors import BundleError, EdgetagError, InputError
from edgetag.doctor.finding import Case, Finding, failed

if TYPE_CHECKING:
    from edgetag.loading import Loaded
    from edgetag.tagging.measure import Measurement
    from edgetag.tagging.tagger import Tagger


def bundle(case: Case) -> Finding:
    """Loaded as the sensor loads it, with its self-test; then the nets of one window by the clock."""
    try:
        place = _place(case)
    except BundleError as error:
        return failed(error, "`edgetag bundle install BUNDLE` again", BundleError)
    try:
        loaded = _loaded(case, place.path)
    except BundleError as error:
        return failed(error, place.remedy, BundleError)
    except InputError as error:
        return failed(error, "correct bundle.public_key", InputError)
    try:
        loaded.rules()
    except InputError as error:
        return failed(error, "correct events.tags, or take another bundle", InputError)
    return _timed(loaded, place.origin)


class _Place(NamedTuple):
    """Where it is, how it got there, and what to do if it does not pass."""

    path: Path
    origin: str
    remedy: str


def _place(case: Case) -> _Place:
    """As `edgetag.loading` finds it.

    Raises:
        BundleError: it cannot be known which is installed.
    """
    from edgetag.tagging.bundle import starter_path
    from edgetag.tagging.store import store_in

    settings = case.settings.bundle
    if settings.path is not None:
        return _Place(Path(settings.path), "of bundle.path", "put it there again, or correct bundle.path")
    if (installed := store_in(case.state).current()) is not None:
        remedy = "`edgetag bundle install BUNDLE` again, or `edgetag bundle rollback`"
        return _Place(installed, "installed", remedy)
    remedy = "install edgetag itself again"
    if settings.public_key is not None:
        remedy = "`edgetag bundle install BUNDLE`: one that the owner of bundle.public_key signed"
    return _Place(starter_path(), "the one that ships", remedy)


def _loaded(case: Case, path: Path) -> "Loaded":
    """As the sensor would load it now, but that variants are not measured against each other.

    Raises:
        BundleError: it does not pass.
        InputError: the public key cannot be used.
    """
    from edgetag.loading import Loaded
    from edgetag.tagging.choice import choose_variant
    from edgetag.tagging.tagger import Tagger

    settings = case.settings
    key = None if settings.bundle.public_key is None else Path(settings.bundle.public_key)
    variant, threads = settings.runtime.variant, settings.runtime.threads
    if variant == "auto":
        variant = choose_variant(path, case.state, threads=threads, public_key=key, measure=_not_now)
    return Loaded(Tagger.load(path, variant, threads=threads, public_key=key), settings)


def _not_now(*_: object, **__: object) -> "Measurement":
    """So that nothing is kept; the smaller variant is taken."""
    raise EdgetagError("a doctor does not measure them")


def _timed(loaded: "Loaded", origin: str) -> Finding:
    tagger = loaded.tagger
    hop_s = loaded.settings.window.hop_s or tagger.default_hop_s
    took_s = _window_s(tagger)
    found = (
        f"{tagger.bundle.model} ({tagger.bundle.variant}), {origin}; passes its self-test; "
        f"a window takes {1000 * took_s:.0f} ms, and there is a new one every {hop_s:g} s"
    )
    if took_s > hop_s:
        return failed(f"{found}: too slow", "a smaller bundle, or a longer window.hop_s", BundleError)
    return Finding("ok", found)


def _window_s(tagger: "Tagger") -> float:
    """How long the first golden window takes if every branch fires."""
    import numpy as np

    samples = tagger.bundle.golden.pcm[0].astype(np.float32) * np.float32(1 / 32768)
    started_s = time.perf_counter()
    features = tagger.features(samples)
    for net in tagger.bundle.nets.values():
        net(features)
    return time.perf_counter() - started_s
