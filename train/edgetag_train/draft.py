"""A bundle while it is written: nets in a folder, golden windows, a manifest for the variants at hand."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgetag.contract.frontend import LOGMEL, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.manifest import (
    EMBEDDING_INPUT,
    FORMAT,
    LOGMEL_INPUT,
    MANIFEST_NAME,
    Golden,
    Manifest,
    Net,
    Variant,
)
from edgetag.contract.manifest import Embedding as ManifestEmbedding
from edgetag.contract.strict_yaml import dump_yaml
from edgetag.contract.taxonomy import Taxonomy
from edgetag.demo.scene import street_scene
from edgetag.dsp.logmel import LogMel
from edgetag.tagging.bundle import OnnxNet
from edgetag.tagging.embedding import Embedder
from edgetag_train.embedding import Embedding
from edgetag_train.files import file_entry
from edgetag_train.fit.run import ROOT, coarse_id
from edgetag_train.onnx_net import Feed

GOLDEN_START_S = (20, 40)
GOLDEN_GAIN = (1.0, 0.01)
NOISE_DEVIATION = 8.0  # of 32768
GOLDEN_TOLERANCE: dict[Variant, float] = {"fp32": 0.001, "int8": 0.02}
"""Emulated processors agree within 4e-7 on the same log-mel. 2e-5 dB in every cell of it, more than was
seen, moves fp32 nets by 4e-7 and int8 nets by up to 0.0063; an embedding's own eight bits move both."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A bundle that is being written.

    Attributes:
        folder: where its nets are.
        nets: by name, the number of outputs.
        taxonomy: whose tags they tell.
        embedding: whose nets lie there as well, if the others take one.
        stated: what the manifest states besides.
    """

    folder: Path
    nets: dict[str, int]
    taxonomy: Taxonomy
    embedding: Embedding | None
    stated: dict[str, Any]

    def path(self, net: str, variant: Variant) -> Path:
        return self.folder / f"{net}.{variant}.onnx"

    def state(self, variants: tuple[Variant, ...], **stated: Any) -> dict[str, NDArray[np.float32]]:  # noqa: ANN401
        """Write the golden windows and the manifest for these variants; what `golden.npz` expects."""
        pcm = golden_windows()
        golden = {variant: golden_feeds(pcm, self.embedding, variant) for variant in variants}
        expected = {f"{net}_{v}": self._said(net, v, golden[v]) for net in self.nets for v in variants}
        np.savez_compressed(self.folder / "golden.npz", pcm=pcm, **expected)
        nets = {
            net: Net(n, {v: file_entry(self.path(net, v)) for v in variants}) for net, n in self.nets.items()
        }
        manifest = Manifest(
            format=FORMAT,
            created=datetime.now(UTC).strftime("%Y-%m-%d"),
            taxonomy=self.taxonomy,
            frontend=LOGMEL,
            embedding=self._stated_embedding(variants),
            root=nets.pop(ROOT),
            branches={coarse_id(name): net for name, net in nets.items()},
            golden=Golden(
                **msgspec.structs.asdict(file_entry(self.folder / "golden.npz")),
                tolerance={variant: GOLDEN_TOLERANCE[variant] for variant in variants},
            ),
            **({"thresholds": dict.fromkeys(self.taxonomy.ids, 0.5)} | self.stated | stated),
        )
        manifest.check()
        (self.folder / MANIFEST_NAME).write_bytes(dump_yaml(msgspec.to_builtins(manifest)))
        return expected

    def drop(self, variant: Variant) -> None:
        """Leave a variant out after all."""
        for net in [*self.nets, *(["embedding"] if self.embedding else [])]:
            self.path(net, variant).unlink(missing_ok=True)

    def _said(self, net: str, variant: Variant, golden: list[Feed]) -> NDArray[np.float32]:
        session = OnnxNet(self.path(net, variant).read_bytes(), net)
        return np.stack([session(feed)[0] for feed in golden])

    def _stated_embedding(self, variants: tuple[Variant, ...]) -> ManifestEmbedding | None:
        if self.embedding is None:
            return None
        files = {variant: file_entry(self.path("embedding", variant)) for variant in variants}
        return ManifestEmbedding(self.embedding.kind, files)


def golden_feeds(pcm: NDArray[np.int16], embedding: Embedding | None, variant: Variant) -> list[Feed]:
    """The golden windows as a sensor's nets get them."""
    logmel = LogMel()
    embedder = None
    if embedding is not None:
        embedder = Embedder(OnnxNet(embedding.paths[variant].read_bytes(), "the embedding"))
    found: list[Feed] = []
    for window in pcm:
        samples = window.astype(np.float32) * np.float32(1 / 32768)
        feed = {LOGMEL_INPUT: logmel(samples)[None, None]}
        if embedder is not None:
            feed[EMBEDDING_INPUT] = embedder(samples)
        found.append(feed)
    return found


@cache
def golden_windows() -> NDArray[np.int16]:
    """A busy and a quiet part of the project's own synthetic street, and faint white noise, in which products
    that saturate on a processor show most. Shape: [3, 441000]
    """
    street = street_scene(seed=1).samples
    windows = [np.random.default_rng(1).normal(0, NOISE_DEVIATION, WINDOW_SAMPLES)]
    for start_s, gain in zip(GOLDEN_START_S, GOLDEN_GAIN, strict=True):
        start = start_s * SAMPLE_RATE_HZ
        windows.insert(-1, street[start : start + WINDOW_SAMPLES] * (gain * 32767))
    found = np.round(windows).astype(np.int16)
    found.flags.writeable = False
    return found
