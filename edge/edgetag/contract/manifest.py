"""`bundle.yaml`: what a bundle states about itself. The loader checks every statement against the files."""

import re
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

SIGNATURE_NAME = "bundle.yaml.sig"
SIGNATURE_BYTES = 64  # Ed25519
MAX_MANIFEST_BYTES = 2**20
MAX_FILE_BYTES = 2**31 - 1  # what an ONNX file can have
MAX_FILES = 64
DEFAULT_THRESHOLD = 0.5
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,254}")
"""A file's name that is one on every system and in every archive."""

LOGMEL_INPUT = "logmel"
EMBEDDING_INPUT = "embedding"
OUTPUT = "probability"
LOGMEL_SHAPE = (1, 1, N_MELS, N_FRAMES)
EMBEDDING_SHAPE = (1, VGGISH_N_PATCHES, VGGISH_EMBEDDING_SIZE)

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]
Variant = Literal["fp32", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")
Policy = Literal["threshold", "threshold_or_max"]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file inside the bundle, by plain name: its length in bytes and its hash."""

    file: str
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_FILE_BYTES)]
    sha256: Sha256

    def __post_init__(self) -> None:
        if not PLAIN_NAME.fullmatch(self.file):
            raise ValueError(f"{self.file!r} is not a plain file name inside the bundle")


class Net(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One net: its number of outputs (tags, in taxonomy order) and its variants, at least one."""

    outputs: Annotated[int, msgspec.Meta(gt=0)]
    variants: dict[Variant, File]

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("a net needs at least one variant, fp32 or int8")


class Embedding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The embedding net: ten 96×64 log-mel patches in, 10×128 out, each by itself (one contract, many nets).

    Where the net leaves their number free, patches that windows share are computed once.
    """

    kind: str
    variants: dict[Variant, File]


class Cascade(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a branch fires: its coarse score is strictly above `threshold`; with `threshold_or_max`
    the highest-scoring category fires as well (the paper's rule)."""

    policy: Policy = "threshold"
    threshold: Threshold = 0.5


class Golden(File, frozen=True):
    """`golden.npz`: windows `pcm` (int16 [k, 441000]) and what each net says of them, under `<net>_<variant>`
    (`root_int8` [k, its outputs], `branch-1_int8` [k, 4], …). Loading runs every net on every window and
    refuses a difference above the variant's tolerance."""

    tolerance: dict[Variant, Annotated[float, msgspec.Meta(gt=0, lt=1)]]


class LevelParity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One level's tags, as the whole system of either variant scores them under the cascade.

    Attributes:
        judged_on: the recordings, e.g. `validate`.
        windows: how many of them.
        max_difference, mean_difference: of any tag's probability there. Where a branch fires in one variant
            only, its tags differ by what it says, however near the nets are.
        micro_auprc: by variant.
        class_auprc: by coarse id, by variant (at the fine level: of the category's fine tags together);
            categories without a positive there are absent.
    """

    judged_on: str
    windows: int
    max_difference: float
    mean_difference: float
    micro_auprc: dict[Variant, float]
    class_auprc: dict[str, dict[Variant, float]]


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What eight bits cost: the int8 nets beside the fp32 nets they were made from.

    Attributes:
        levels: `coarse` and `fine`; a level that nothing at hand can judge is absent.
        golden_difference: the largest of any net's probability on the golden windows.
        float_layers: by net, the layers that stay in float in the int8 variant.
        calibration: by tag id, how many of the windows that ranges were taken from have it.
        calibration_windows: how many windows that were.
        exceeded: limits that the bundle was written in spite of, in words.
    """

    levels: dict[str, LevelParity]
    golden_difference: float
    float_layers: dict[str, list[str]]
    calibration: dict[str, int]
    calibration_windows: int
    exceeded: list[str]


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
    parity: Parity | None = None
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    training: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def nets(self) -> dict[str, dict[Variant, File]]:
        """The variants of `root`, `branch-1`, …, and `embedding` where there is one."""
        nets = {"root": self.root.variants} | {f"branch-{id}": n.variants for id, n in self.branches.items()}
        return nets if self.embedding is None else nets | {"embedding": self.embedding.variants}

    @property
    def outputs(self) -> dict[str, int]:
        """How many tags `root`, `branch-1`, … tell."""
        return {"root": self.root.outputs} | {f"branch-{id}": n.outputs for id, n in self.branches.items()}

    @property
    def fine_ids(self) -> list[str]:
        """Fine tags the bundle can tell: all, unless the root is coarse only."""
        if self.root.outputs == len(self.taxonomy.ids):
            return list(self.taxonomy.fine_ids)
        told = [c for c in self.taxonomy.categories if c.single or c.id in self.branches]
        return [tag.id for category in told for tag in category.fine]

    @property
    def all_thresholds(self) -> dict[str, float]:
        """Every tag's threshold, those that are not stated filled in."""
        return {id: self.thresholds.get(id, DEFAULT_THRESHOLD) for id in self.taxonomy.ids}

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that every net of the bundle has."""
        return tuple(v for v in VARIANTS if all(v in variants for variants in self.nets.values()))

    @property
    def files(self) -> dict[str, File]:
        """Every file of the bundle but the manifest and its signature, by name."""
        stated = [file for variants in self.nets.values() for file in variants.values()]
        return {file.file: file for file in [*stated, self.golden]}

    def check(self) -> None:
        """Whether the statements fit each other.

        Raises:
            BundleError: an impossible number of outputs, a branch without a category, a threshold
                without a tag, another front end, an embedding that nothing uses, a variant that only some
                nets have, or golden windows without its tolerance.
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
        if not self.variants:
            raise BundleError("no variant, fp32 or int8, is there for every net")
        if missing := [variant for variant in self.variants if variant not in self.golden.tolerance]:
            raise BundleError(f"the golden windows have no tolerance for {missing[0]}")
        if len(self.files) > MAX_FILES or {MANIFEST_NAME, SIGNATURE_NAME} & self.files.keys():
            raise BundleError(f"its {len(self.files)} files cannot be a bundle's")
        if (self.embedding is None) != (self.fusion == "none"):
            raise BundleError(
                f"fusion is {self.fusion!r} but the embedding is {self.embedding and self.embedding.kind}"
            )


def model_id(name: str, sha256: str) -> str:
    """How events name a bundle.

    >>> model_id("starter", "0123456789abcdef")
    'starter@sha256:0123456789ab'
    """
    return f"{name}@sha256:{sha256[:12]}"
