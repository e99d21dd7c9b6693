"""`bundle.yaml`: what a bundle states about itself. The loader checks every statement against the files."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from edgetag.contract.errors import BundleError
from edgetag.contract.frontend import (
    LOGMEL,
    N_FRAMES,
    N_MELS,
    VGGISH_EMBEDDING_SIZE,
    VGGISH_N_PATCHES,
    FrontEnd,
)
from edgetag.contract.taxonomy import Taxonomy

FORMAT = "edgetag.bundle/1"
MANIFEST_NAME = "bundle.yaml"

LOGMEL_INPUT = "logmel"
EMBEDDING_INPUT = "embedding"
OUTPUT = "probability"
LOGMEL_SHAPE = (1, 1, N_MELS, N_FRAMES)
EMBEDDING_SHAPE = (1, VGGISH_N_PATCHES, VGGISH_EMBEDDING_SIZE)

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]
Variant = Literal["fp32", "int8"]
Policy = Literal["threshold", "threshold_or_max"]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file inside the bundle directory, by plain name."""

    file: str
    sha256: Sha256

    def __post_init__(self) -> None:
        if (
            not self.file
            or PurePosixPath(self.file).name != self.file
            or self.file.startswith(".")
            or "\\" in self.file
        ):
            raise ValueError(f"{self.file!r} is not a plain file name inside the bundle")


class Net(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One net: its number of outputs (tags, in taxonomy order) and its variants, at least one."""

    outputs: Annotated[int, msgspec.Meta(gt=0)]
    variants: dict[Variant, File]

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("a net needs at least one variant, fp32 or int8")


class Embedding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The embedding net: ten 96×64 log-mel patches in, 10×128 out (one contract, many nets)."""

    kind: str
    variants: dict[Variant, File]


class Cascade(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a branch fires: its coarse score is strictly above `threshold`; with `threshold_or_max`
    the highest-scoring category fires as well (the paper's rule)."""

    policy: Policy = "threshold"
    threshold: Threshold = 0.5


class Golden(File, frozen=True):
    """`golden.npz`: a window `pcm` (441000 int16) and what each net says of it, under `<net>_<variant>`
    (`root_int8`, `branch-1_int8`, …). Loading runs every net and refuses a difference above `tolerance`."""

    tolerance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.02


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of `bundle.yaml`. `metrics` and `training` are for people and are kept as written."""

    format: Literal["edgetag.bundle/1"]
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: str
    created: str
    licence: str
    summary: str
    taxonomy: Taxonomy
    frontend: FrontEnd
    embedding: Embedding | None = None
    fusion: Literal["none", "concat", "bilinear"] = "none"
    cascade: Cascade = msgspec.field(default_factory=Cascade)
    root: Net
    branches: dict[str, Net]
    thresholds: dict[str, Threshold]
    golden: Golden
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    training: dict[str, Any] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Whether the statements fit each other.

        Raises:
            BundleError: an impossible number of outputs, a branch without a category, a threshold
                without a tag, another front end, or an embedding that nothing uses.
        """
        taxonomy = self.taxonomy
        if self.frontend != LOGMEL:
            raise BundleError(f"the front end is {self.frontend}, this edgetag computes {LOGMEL}")
        if self.root.outputs not in (len(taxonomy.ids), len(taxonomy.coarse_ids)):
            raise BundleError(
                f"the root net has {self.root.outputs} outputs; {taxonomy.name} needs "
                f"{len(taxonomy.ids)} (coarse and fine) or {len(taxonomy.coarse_ids)} (coarse)"
            )
        for id, net in self.branches.items():
            if id not in taxonomy.branch_ids:
                raise BundleError(f"branch {id!r} refines no category of {taxonomy.name}")
            if net.outputs != (expected := len(taxonomy.category(id).fine)):
                raise BundleError(
                    f"branch {id} has {net.outputs} outputs, its category has {expected} fine tags"
                )
        if unknown := set(self.thresholds) - set(taxonomy.ids):
            raise BundleError(f"thresholds name unknown tags: {', '.join(sorted(unknown))}")
        if (self.embedding is None) != (self.fusion == "none"):
            raise BundleError(
                f"fusion is {self.fusion!r} but the embedding is {self.embedding and self.embedding.kind}"
            )
