"""Patches that windows share are embedded once, and nobody can tell but by the time it takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgetag import Tagger
from edgetag.capture.source import Block
from edgetag.capture.windows import Windower
from edgetag.contract.errors import BundleError
from edgetag.contract.event import TagsEvent
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.demo.scene import street_scene
from edgetag.tagging.bundle import PATCHES_INPUT, OnnxNet, check_embedding
from edgetag.tagging.embedding import PATCH_SAMPLES, Embedder
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import hop_samples
from fakes_bundle import mean_embedding_net, write_bundle

LOGMEL_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-4  # an event's own rounding
HOP = 5 * PATCH_SAMPLES
SILENCE = float(np.log(0.01))


class CountingNet(OnnxNet):
    """Notes how many patches it was given, call by call."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "counting")
        self.asked: list[int] = []

    def __call__(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        self.asked.append(len(inputs[PATCHES_INPUT]))
        return super().__call__(inputs)


@pytest.fixture(scope="module")
def street() -> NDArray[np.float32]:
    """A minute of the synthetic street."""
    return street_scene(seed=1).samples.astype(np.float32)


@pytest.fixture
def net() -> CountingNet:
    return CountingNet(mean_embedding_net())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its root's logits move with the embedding's mean; a street's is about −3."""
    path = tmp_path_factory.mktemp("bundle")
    logits = np.linspace(1, 5, 37)
    return write_bundle(path, _sigmoid(logits), embedding=True, golden_root=_sigmoid(logits + SILENCE))


def _sigmoid(logits: NDArray[np.float64]) -> list[float]:
    return list((1 / (1 + np.exp(-logits))).tolist())


def fresh(samples: NDArray[np.float32], data: bytes | None = None) -> NDArray[np.float32]:
    """What an embedder that has heard nothing before says of a window."""
    return Embedder(OnnxNet(data or mean_embedding_net(), "fresh"))(samples)


def windows_at(samples: NDArray[np.float32], starts: Sequence[int]) -> list[tuple[int, NDArray[np.float32]]]:
    return [(start, samples[start : start + WINDOW_SAMPLES].copy()) for start in starts]


# -- what is taken over --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(1, 10))
def test_only_new_patches_are_computed(street: NDArray[np.float32], net: CountingNet, k: int) -> None:
    """
    before  0 1 2 3 4 5 6 7 8 9
    now           0 1 2 3 4 5 6 7 8 9      k = 3: three new ones; they are those of the whole window
    """
    embedder = Embedder(net)
    for start, samples in windows_at(street, [0, k * PATCH_SAMPLES, 2 * k * PATCH_SAMPLES]):
        found, expected = embedder(samples, start), fresh(samples)
        np.testing.assert_array_equal(found[0, 10 - k :], expected[0, 10 - k :])
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOGMEL_TOLERANCE)
        assert found.shape == (1, 10, 128)
    assert net.asked == [10, k, k]


def test_patches_differ(street: NDArray[np.float32]) -> None:
    """Else the tests here would not see one in another's place."""
    means = fresh(street[:WINDOW_SAMPLES])[0, :, 0]
    assert np.abs(np.diff(np.sort(means))).min() > 10 * LOGMEL_TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    starts=st.lists(
        st.one_of(
            st.integers(0, 40).map(lambda k: k * PATCH_SAMPLES),
            st.integers(0, 40 * PATCH_SAMPLES),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_any_order_of_windows(starts: list[int]) -> None:
    """Forwards, backwards, twice the same, off the grid: each window gets what it would get alone."""
    embedder = Embedder(OnnxNet(mean_embedding_net(), "net"))
    for start, samples in windows_at(_street(), starts):
        np.testing.assert_allclose(embedder(samples, start), fresh(samples), rtol=0, atol=LOGMEL_TOLERANCE)


_streets: list[NDArray[np.float32]] = []


def _street() -> NDArray[np.float32]:
    if not _streets:
        _streets.append(street_scene(seed=2).samples.astype(np.float32))
    return _streets[0]


# -- what is not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second",
    [0, -HOP, 1, HOP - 1, HOP + 1, 10 * PATCH_SAMPLES, WINDOW_SAMPLES, hop_samples(5.0)],
)
def test_other_places(street: NDArray[np.float32], net: CountingNet, second: int) -> None:
    """The same place again, before, between patches, beyond the window: all ten, and nothing differs."""
    (_, first), (_, then) = windows_at(street, [HOP, HOP + second])
    embedder = Embedder(net)
    embedder(first, HOP)
    np.testing.assert_array_equal(embedder(then, HOP + second), fresh(then))
    assert net.asked == [10, 10]


@pytest.mark.parametrize("place", [0, HOP, WINDOW_SAMPLES - HOP - 1])
def test_one_sample_that_differs(street: NDArray[np.float32], net: CountingNet, place: int) -> None:
    """Another file, or a stream with a gap that counts the same: whatever is not the same is computed."""
    (_, first), (_, then) = windows_at(street, [0, HOP])
    embedder = Embedder(net)
    embedder(first, 0)
    then[place] += np.float32(1e-3)
    np.testing.assert_array_equal(embedder(then, HOP), fresh(then))
    assert net.asked == [10, 10]


def test_a_sample_in_the_new_part_may_differ(street: NDArray[np.float32], net: CountingNet) -> None:
    """It is in no patch that is taken over: the last of those ends 0.38 s before it."""
    (_, first), (_, then) = windows_at(street, [0, HOP])
    embedder = Embedder(net)
    embedder(first, 0)
    then[WINDOW_SAMPLES - HOP] += np.float32(0.5)
    np.testing.assert_allclose(embedder(then, HOP), fresh(then), rtol=0, atol=LOGMEL_TOLERANCE)
    assert net.asked == [10, 5]


def test_a_buffer_that_is_used_again(street: NDArray[np.float32], net: CountingNet) -> None:
    """The caller may overwrite a window: it is remembered as it was."""
    buffer = np.empty(WINDOW_SAMPLES, np.float32)
    embedder = Embedder(net)
    for start, samples in windows_at(street, [0, HOP]):
        buffer[:] = samples
        np.testing.assert_allclose(embedder(buffer, start), fresh(samples), rtol=0, atol=LOGMEL_TOLERANCE)
    assert net.asked == [10, 5]


def test_a_window_of_no_place(street: NDArray[np.float32], net: CountingNet) -> None:
    """It takes nothing over and is not remembered; the stream goes on after it."""
    (_, first), (_, then) = windows_at(street, [0, HOP])
    embedder = Embedder(net)
    embedder(first, 0)
    embedder(then)
    embedder(then, HOP)
    assert net.asked == [10, 10, 5]


def test_a_net_of_ten_runs_on_ten(street: NDArray[np.float32]) -> None:
    """As nets of older bundles are."""
    data = mean_embedding_net(10)
    net = CountingNet(data)
    embedder = Embedder(net)
    for start, samples in windows_at(street, [0, HOP, 2 * HOP]):
        np.testing.assert_array_equal(embedder(samples, start), fresh(samples, data))
    assert net.asked == [10, 10, 10]


# -- events --------------------------------------------------------------------------------------------------


def assert_near(found: TagsEvent, expected: TagsEvent) -> None:
    assert (found.start, found.verdict, found.level) == (expected.start, expected.verdict, expected.level)
    assert found.coarse == pytest.approx(expected.coarse, abs=PROBABILITY_TOLERANCE)
    assert found.fine == pytest.approx(expected.fine, abs=PROBABILITY_TOLERANCE)


def events_of(tagger: Tagger, blocks: Sequence[Block]) -> list[TagsEvent]:
    windower, stream = Windower(SAMPLE_RATE_HZ, hop_samples=HOP), EventStream(tagger, sensor="test")
    windows = [window for block in blocks for window in windower.feed(block)] + windower.finish()
    return [stream.event(window, start_utc_s=0.0) for window in windows]


def blocks_of(samples: NDArray[np.float32], sizes: Sequence[int]) -> list[Block]:
    """In blocks of these sizes, over and over."""
    blocks, first = [], 0
    while first < len(samples):
        n = sizes[len(blocks) % len(sizes)]
        blocks.append(Block(first, samples[first : first + n, None]))
        first += n
    return blocks


def alone(bundle: Path, blocks: Sequence[Block]) -> list[TagsEvent]:
    """Every window's event by a tagger that has heard nothing else."""
    windower = Windower(SAMPLE_RATE_HZ, hop_samples=HOP)
    windows = [window for block in blocks for window in windower.feed(block)] + windower.finish()
    return [
        EventStream(Tagger.load(bundle), sensor="test").event(window, start_utc_s=0.0) for window in windows
    ]


def test_events_of_a_stream_are_those_of_its_windows(bundle: Path, street: NDArray[np.float32]) -> None:
    """A tagger that goes on hearing, and a fresh one for every window."""
    blocks = blocks_of(street[: 32 * SAMPLE_RATE_HZ], [SAMPLE_RATE_HZ])
    found, expected = events_of(Tagger.load(bundle), blocks), alone(bundle, blocks)
    assert len(found) == len(expected) > 5
    for event, by_itself in zip(found, expected, strict=True):
        assert_near(event, by_itself)


def test_a_gap(bundle: Path, street: NDArray[np.float32]) -> None:
    """Half a second is lost: windows that touch it, and those after it, are what they are alone."""
    blocks = blocks_of(street[: 40 * SAMPLE_RATE_HZ], [SAMPLE_RATE_HZ // 2])
    del blocks[31]
    found, expected = events_of(Tagger.load(bundle), blocks), alone(bundle, blocks)
    assert [event.audio.overruns for event in found].count(1) >= 2
    for event, by_itself in zip(found, expected, strict=True):
        assert_near(event, by_itself)


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1_000, 200_000), min_size=1, max_size=5))
def test_any_chunking_gives_the_same_events(sizes: list[int]) -> None:
    """To the bit, but for what the clock on the wall says."""
    samples = _street()[: 25 * SAMPLE_RATE_HZ]
    found, expected = (
        [_timeless(event) for event in events_of(_tagger(), blocks_of(samples, cut))]
        for cut in (sizes, [SAMPLE_RATE_HZ])
    )
    assert found == expected


def _timeless(event: TagsEvent) -> TagsEvent:
    return msgspec.structs.replace(event, boot="", lag_s=0.0, clock=None)  # type: ignore[arg-type]


def _tagger() -> Tagger:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        logits = np.linspace(1, 5, 37)
        golden = _sigmoid(logits + SILENCE)
        return Tagger.load(write_bundle(Path(folder), _sigmoid(logits), embedding=True, golden_root=golden))


def test_another_recording(bundle: Path, street: NDArray[np.float32]) -> None:
    """One tagger, two recordings that both begin at 0: the second is heard as by a tagger of its own."""
    tagger = Tagger.load(bundle)
    first, second = street[: 20 * SAMPLE_RATE_HZ], _street()[: 20 * SAMPLE_RATE_HZ]
    tagger.tag(first, SAMPLE_RATE_HZ)
    found = tagger.tag(second, SAMPLE_RATE_HZ)
    expected = Tagger.load(bundle).tag(second, SAMPLE_RATE_HZ)
    assert [_timeless(event) for event in found] == [_timeless(event) for event in expected]


def test_another_bundle(bundle: Path, street: NDArray[np.float32], tmp_path: Path) -> None:
    """A bundle that takes another's place in a stream knows nothing of what that one heard."""
    root = [0.5] * 37
    golden = _sigmoid(np.full(37, SILENCE))
    other = write_bundle(tmp_path / "other", root, embedding=True, golden_root=golden)
    (_, first), (_, then) = windows_at(street, [0, HOP])
    Tagger.load(bundle).analyse(first, start_sample=0)
    found = Tagger.load(other).analyse(then, start_sample=HOP)
    assert found == Tagger.load(other).analyse(then)


def test_default_hops(bundle: Path, street: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five patches of an embedding net that is large, five seconds elsewhere."""
    tagger = Tagger.load(bundle)
    assert (tagger.default_hop_s, Tagger.load().default_hop_s) == (5.0, 5.0)
    embedding = tagger.bundle.manifest.embedding
    assert embedding is not None
    size = embedding.variants[tagger.bundle.variant].size
    monkeypatch.setattr("edgetag.tagging.tagger.DEAR_EMBEDDING_BYTES", size + 1)
    assert tagger.default_hop_s == 5.0
    monkeypatch.setattr("edgetag.tagging.tagger.DEAR_EMBEDDING_BYTES", size)
    assert tagger.default_hop_s == 4.8
    assert hop_samples(tagger.default_hop_s) == HOP
    events = tagger.tag(street[: 10 * SAMPLE_RATE_HZ + 2 * HOP], SAMPLE_RATE_HZ)
    assert [event.start[17:23] for event in events] == ["00.000", "04.800", "09.600"]


# -- nets that are refused -----------------------------------------------------------------------------------


def test_a_net_that_only_says_it_is_free() -> None:
    """It states any number of patches and can do ten: refused when it is loaded, not at the second window."""
    model = onnx.load_from_string(mean_embedding_net())
    computed = numpy_helper.from_array(np.array([10, 96 * 64], np.float32), "computed")
    (shape,) = (constant for constant in model.graph.initializer if constant.name == "shape")
    shape.CopyFrom(computed)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    nodes = [  # so that no runtime knows before it runs
        helper.make_node("ReduceMean", [PATCHES_INPUT], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["computed", "nothing"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["shape"], to=TensorProto.INT64),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(BundleError, match=r"lying\.onnx fails \("):
        check_embedding(OnnxNet(model.SerializeToString(), "lying.onnx"))


@pytest.mark.parametrize("n", [1, 5, 20])
def test_another_number_of_patches(n: int) -> None:
    with pytest.raises(BundleError, match=rf"'patches' {n}×96×64 to .*; an embedding 'patches' n×96×64 to"):
        check_embedding(OnnxNet(mean_embedding_net(n), "net"))
