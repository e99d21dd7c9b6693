"""Which bundle hears and by which of its nets: by the settings, the store and what `edgetag bench` found."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from edgetag.config import Settings
from edgetag.contract.errors import BundleError
from edgetag.tagging.choice import choose_variant
from edgetag.tagging.conditions import Conditions
from edgetag.tagging.sounds import Rule, rules_of
from edgetag.tagging.store import store_in
from edgetag.tagging.tagger import Tagger

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.bundle")


class Loaded(NamedTuple):
    """What hears, and how."""

    tagger: Tagger
    settings: Settings

    @property
    def conditions(self) -> Conditions:
        """What the settings add to the bundle."""
        return Conditions(self.settings.level.calibration_db, self.settings.gate.min_laeq_db)

    @property
    def names(self) -> dict[str, str]:
        """Of every tag."""
        taxonomy = self.tagger.taxonomy
        return {id: taxonomy.tags[id].name for id in taxonomy.ids}

    def rules(self) -> dict[str, Rule]:
        """When a tag's sound begins and ends.

        A category's only kind is as likely as the category, whose sound is told; its own only where it has a
        rule of its own.

        Raises:
            InputError: the settings have a rule for a tag that the bundle does not have.
        """
        events, thresholds = self.settings.events, self.tagger.thresholds
        only = {category.single.id for category in self.tagger.taxonomy.categories if category.single}
        told = {id: on for id, on in thresholds.items() if id not in only or id in events.tags}
        return rules_of(
            told, off_ratio=events.off_ratio, min_duration_s=events.min_duration_s, tags=events.tags
        )


class Loader:
    """Loads what the settings ask for: a bundle's path, else the installed one, else the starter.

    Args:
        settings: read anew for every load, so that a running sensor can be told another path.
        state: the state directory, with the store and the findings of `edgetag bench`.
    """

    def __init__(self, settings: Callable[[], Settings], state: Path) -> None:
        self._settings = settings
        self._state = state
        self._store = store_in(state)

    def load(self) -> Loaded:
        """What is asked for now, checked whole.

        Raises:
            BundleError: it does not pass.
            InputError: the settings or the public key cannot be read.
        """
        settings = self._settings()
        return Loaded(self._load(settings, self._asked_for(settings)), settings)

    def load_or_previous(self) -> tuple[Loaded, str]:
        """What is asked for, or the last good bundle where the installed one does not pass any more.

        Returns:
            What was loaded, and why it is not what was asked for; "" if it is.

        Raises:
            BundleError: neither passes, or a path was asked for.
            InputError: the settings or the public key cannot be read.
        """
        settings = self._settings()
        try:
            return Loaded(self._load(settings, self._asked_for(settings)), settings), ""
        except BundleError as error:
            is_installed = settings.bundle.path is None and self._store.current() is not None
            previous = self._store.previous() if is_installed else None
            if previous is None:
                raise
            _log.error("bundle.refused", reason=str(error), instead=str(previous))
            return Loaded(self._load(settings, previous), settings), str(error)

    def _asked_for(self, settings: Settings) -> Path:
        if settings.bundle.path is not None:
            return Path(settings.bundle.path)
        return self._store.current_or_starter()

    def _load(self, settings: Settings, path: Path) -> Tagger:
        runtime = settings.runtime
        key = None if settings.bundle.public_key is None else Path(settings.bundle.public_key)
        if runtime.variant == "auto":
            variant = choose_variant(path, self._state, threads=runtime.threads, public_key=key)
        else:
            variant = runtime.variant
        return Tagger.load(path, variant, threads=runtime.threads, public_key=key)
