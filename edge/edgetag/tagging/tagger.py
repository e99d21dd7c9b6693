"""The public Python API: samples in, tagged windows out."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgetag.capture.source import Block, check_stream
from edgetag.capture.windows import SANE_PEAK, Windower
from edgetag.contract.errors import BundleError, InputError
from edgetag.contract.event import Info, TagsEvent
from edgetag.contract.frontend import MIN_HOP_S, MIN_VALID, SAMPLE_RATE_HZ, SILENCE_PEAK, WINDOW_S
from edgetag.contract.manifest import EMBEDDING_INPUT, LOGMEL_INPUT, LOGMEL_SHAPE, Variant
from edgetag.dsp.level import LevelMeter, calibrated
from edgetag.dsp.logmel import LogMel
from edgetag.tagging.bundle import Bundle, OnnxNet, load_bundle, starter_path
from edgetag.tagging.cascade import fired, run_cascade
from edgetag.tagging.conditions import NO_CONDITIONS, Conditions
from edgetag.tagging.embedding import PATCH_SAMPLES, Embedder
from edgetag.tagging.stream import Analysis, EventStream

DEFAULT_HOP_S = 5.0
DEFAULT_EMBEDDING_HOP_S = 5 * PATCH_SAMPLES / SAMPLE_RATE_HZ  # 4.8
DEAR_EMBEDDING_BYTES = 10_000_000
"""An embedding net of this size and above takes most of a window's time: VGGish has 72 MB in int8."""
_GLANCE = SAMPLE_RATE_HZ // 10
_LATEST_START_S = 253_370_764_800.0  # 9999-01-01
Features = dict[str, NDArray[np.float32]]


class Tagger:
    """A loaded bundle with its front ends and buffers. Not for two threads at once; load one each.

    Example:
        >>> import numpy as np
        >>> from edgetag import Tagger
        >>> rng = np.random.default_rng(0)
        >>> noise = rng.normal(0, 0.05, 15 * 48_000).astype(np.float32)
        >>> events = Tagger.load().tag(noise, 48_000)
        >>> [event.start for event in events]
        ['1970-01-01T00:00:00.000Z', '1970-01-01T00:00:05.000Z']
        >>> sorted(events[0].coarse)
        ['1', '2', '3', '4', '5', '6', '7', '8']

    Attributes:
        bundle: what it was made of.
        taxonomy, thresholds: the bundle's, every tag's threshold filled in.
        golden_differences: by net, how far it is on the golden windows from what it said when it was made.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        manifest = bundle.manifest
        self.taxonomy = manifest.taxonomy
        self.thresholds = manifest.all_thresholds
        self._logmel = LogMel()
        self._logmel_buffer = np.empty(LOGMEL_SHAPE, np.float32)
        self._level = LevelMeter()
        self._embedder = Embedder(bundle.embedding) if bundle.embedding else None
        self.golden_differences = self._self_test()

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        variant: Variant | None = None,
        *,
        threads: int = 1,
        public_key: Path | None = None,
    ) -> Self:
        """Load a bundle directory or archive, or the one that ships; check it whole and run its self-test.

        Args:
            bundle: where it is; the bundle that ships if absent.
            variant: which nets to load; `int8` where there is one, if absent.
            threads: how many work on one net.
            public_key: a PEM file whose owner must have signed the bundle.

        Raises:
            BundleError: the bundle is damaged, incomplete, unsigned, of another format, or its nets do not
                give the probabilities they gave when it was made.
            InputError: the key cannot be used.
        """
        path = Path(bundle) if bundle is not None else starter_path()
        return cls(load_bundle(path, variant, threads=threads, public_key=public_key))

    def tag(
        self,
        samples: ArrayLike,
        sample_rate_hz: int,
        *,
        hop_s: float | None = None,
        sensor: str = "local",
        start_utc_s: float = 0.0,
    ) -> list[TagsEvent]:
        """Tag a recording in rolling ten-second windows: the events that `edgetag replay` prints.

        Args:
            samples: floats with full scale ±1, or int16. Channels are averaged.
            sample_rate_hz: a whole number, 4,000 to 384,000; other than 44.1 kHz is resampled.
            hop_s: seconds from one window's start to the next, at least 0.1; `default_hop_s` if absent.
            sensor: the events' sensor id.
            start_utc_s: when the first sample was heard, seconds since 1970. By default events count
                from 1970-01-01T00:00:00, so that `start` reads as the place in the recording.

        Shape: samples [n] or [n, channels]

        Returns:
            One event a window. The last window ends with the recording; a recording shorter than a
            window gives one event, untagged (`too_little_audio`) where less than nine tenths is audio.

        Raises:
            InputError: no samples, another number of dimensions, samples that are no finite numbers, a
                rate, hop or start out of range.
        """
        frames, rate_hz = _as_frames(samples), _as_rate(sample_rate_hz)
        check_stream("samples", rate_hz, frames.shape[1])
        check_start(start_utc_s)
        windower = Windower(rate_hz, hop_samples=hop_samples(self.default_hop_s if hop_s is None else hop_s))
        stream = EventStream(self, sensor=sensor)
        events: list[TagsEvent] = []
        for first in range(0, len(frames), rate_hz):  # a second at a time, since windows are large
            windows = windower.feed(Block(first, frames[first : first + rate_hz]))
            events += [stream.event(window, start_utc_s=start_utc_s) for window in windows]
        return events + [stream.event(window, start_utc_s=start_utc_s) for window in windower.finish()]

    def analyse(
        self,
        samples: NDArray[np.float32],
        valid: float = 1.0,
        *,
        lost: Sequence[tuple[int, int]] = (),
        start_sample: int | None = None,
        conditions: Conditions = NO_CONDITIONS,
        with_branches: bool = True,
    ) -> Analysis:
        """Level and probabilities of one window, of which the fraction `valid` is real audio.

        Args:
            samples: the window.
            valid: the share of it that was heard.
            lost: half-open ranges of samples that were not.
            start_sample: its place in the stream, so that it can share work with the window before.
            conditions: of the sensor.
            with_branches: without them the root's own fine probabilities stand; `skipped` says which fired.

        Shape: samples [441000] at 44.1 kHz
        """
        level = calibrated(self._level(samples, lost), conditions.calibration_db)
        if valid < MIN_VALID:
            return Analysis("too_little_audio", level, {}, {}, [], [])
        if is_silent(samples):
            coarse = dict.fromkeys(self.taxonomy.coarse_ids, 0.0)
            fine = dict.fromkeys(self.bundle.manifest.fine_ids, 0.0)
            return Analysis("silent", level, coarse, fine, [], [])
        if conditions.min_laeq_db is not None and level.laeq_db < conditions.min_laeq_db:
            return Analysis("quiet", level, {}, {}, [], [])
        features = self.features(samples, start_sample)
        branches, rule = self.bundle.branches, self.bundle.manifest.cascade
        found = run_cascade(
            _probabilities(self.bundle.root, features),
            branches if with_branches else (),
            lambda id: _probabilities(branches[id], features),
            taxonomy=self.taxonomy,
            rule=rule,
        )
        skipped = [id for id in fired(found.coarse, rule) if id in branches and id not in found.refined]
        active = [id for id, p in (found.coarse | found.fine).items() if p >= self.thresholds[id]]
        return Analysis(
            "tagged", level, _rounded(found.coarse), _rounded(found.fine), found.refined, active, skipped
        )

    def info(self, hop_s: float) -> Info:
        """What subscribers need to read this tagger's events."""
        return Info(
            edgetag=version("edgetag"),
            bundle=self.bundle.manifest.name,
            bundle_sha256=self.bundle.sha256,
            variant=self.bundle.variant,
            taxonomy=self.taxonomy.name,
            tags={id: self.taxonomy.tags[id].name for id in self.taxonomy.ids},
            thresholds=self.thresholds,
            window_s=WINDOW_S,
            hop_s=hop_s,
        )

    @property
    def default_hop_s(self) -> float:
        """Seconds from one window's start to the next that suit the bundle.

        Half a window: 5, so that windows of a recording begin at whole seconds, and half of the level is
        shared. With a large embedding net 4.8, five of its patches, so that overlapping windows share the
        other five (see `Embedder`).
        """
        embedding = self.bundle.manifest.embedding
        is_dear = embedding and embedding.variants[self.bundle.variant].size >= DEAR_EMBEDDING_BYTES
        return DEFAULT_EMBEDDING_HOP_S if is_dear else DEFAULT_HOP_S

    def features(self, samples: NDArray[np.float32], start_sample: int | None = None) -> Features:
        """The nets' inputs for one window, at its place in the stream if known; valid until the next call."""
        self._logmel(samples, out=self._logmel_buffer[0, 0])
        features: Features = {LOGMEL_INPUT: self._logmel_buffer}
        if self._embedder is not None:
            features[EMBEDDING_INPUT] = self._embedder(samples, start_sample)
        return features

    def _self_test(self) -> dict[str, float]:
        """Run every net on the golden windows: its largest difference from what it said when it was made.

        Raises:
            BundleError: a difference is above the variant's tolerance, or no number.
        """
        golden, tolerance = self.bundle.golden, self.bundle.manifest.golden.tolerance[self.bundle.variant]
        differences = dict.fromkeys(golden.expected, 0.0)
        for k, pcm in enumerate(golden.pcm):
            features = self.features(pcm.astype(np.float32) * np.float32(1 / 32768))
            for name, expected in golden.expected.items():
                difference = float(np.abs(self.bundle.nets[name](features)[0] - expected[k]).max())
                if not difference <= tolerance:
                    raise BundleError(
                        f"{self.bundle.model}: {name} differs by {difference:.4f} from its golden "
                        f"probabilities, more than {tolerance}; it does not run correctly on this machine"
                    )
                differences[name] = max(differences[name], difference)
        return differences


def _probabilities(net: OnnxNet, features: Features) -> list[float]:
    return list(net(features)[0].tolist())


def _rounded(probabilities: dict[str, float]) -> dict[str, float]:
    """To what is worth sending; decisions were taken on the full value."""
    return {id: round(p, 4) for id, p in probabilities.items()}


def is_silent(samples: NDArray[np.float32]) -> bool:
    """Whether a window is digital silence (or a constant): nothing a microphone ever delivers.

    As a rule its first tenth of a second tells.
    """
    return all(float(some.max() - some.min()) < 2 * SILENCE_PEAK for some in (samples[:_GLANCE], samples))


def hop_samples(hop_s: float) -> int:
    """A hop in samples at 44.1 kHz.

    Raises:
        InputError: not a finite number of seconds, or less than a tenth of one.
    """
    if not (isinstance(hop_s, (int, float)) and math.isfinite(hop_s) and hop_s >= MIN_HOP_S):
        raise InputError(f"the hop is {hop_s!r} s; give {MIN_HOP_S} s or more, such as {DEFAULT_HOP_S:g}")
    return round(hop_s * SAMPLE_RATE_HZ)


def check_start(start_utc_s: float) -> float:
    """`start_utc_s` itself, if events of a recording that began then can be stamped.

    Raises:
        InputError: not a time from 1970 to the end of the year 9998.
    """
    if not 0 <= start_utc_s < _LATEST_START_S:
        raise InputError(f"the recording starts {start_utc_s!r} s after 1970; give a time from 1970 to 9998")
    return start_utc_s


def _as_rate(sample_rate_hz: float) -> int:
    """A whole number of hertz, of whatever type it came."""
    if isinstance(sample_rate_hz, (int, float, np.number)) and sample_rate_hz % 1 == 0:
        return int(sample_rate_hz)
    raise InputError(
        f"the sample rate is {sample_rate_hz!r}; give the recording's own, a whole number of hertz"
    )


def _as_frames(samples: ArrayLike) -> NDArray[np.float32]:
    """Shape: [n] or [n, channels] -> [n, channels]"""
    try:
        array = np.asarray(samples)
    except ValueError as error:
        raise InputError(f"samples are no array of numbers ({error})") from error
    scale = 1 / 32768 if array.dtype == np.int16 else 1.0
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(f"samples have shape {array.shape}; expected (n,) or (n, channels) with n > 0")
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"samples are {array.dtype}; give floats with full scale ±1, or int16")
    sane = np.abs(array) <= SANE_PEAK  # False for NaN, too
    if not sane.all():
        first = int(np.flatnonzero(~sane.reshape(len(array), -1).all(axis=1))[0])
        raise InputError(f"samples hold values that are not finite, the first at index {first}")
    frames = array.astype(np.float32) * np.float32(scale)
    return frames.reshape(len(frames), -1)
