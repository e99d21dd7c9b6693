"""Everything that can be checked of a bundle, one check after another, for every variant."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgetag.contract.errors import BundleError
from edgetag.contract.manifest import MANIFEST_NAME, model_id
from edgetag.tagging.bundle import load_bundle, read_file, read_manifest, refuse_unstated
from edgetag.tagging.container import open_container
from edgetag.tagging.signature import signature_state
from edgetag.tagging.tagger import Tagger


@dataclass(frozen=True)
class Check:
    """Something that was found to be right: `subject` is what, `found` in a few words how."""

    subject: str
    found: str


def verify(bundle: Path, public_key: Path | None = None) -> Iterator[Check]:
    """Check a bundle's signature, manifest, files, nets and golden windows, in this order.

    Args:
        bundle: a folder or an archive.
        public_key: a PEM file whose owner must have signed it.

    Raises:
        BundleError: the first check that fails.
        InputError: the key cannot be used.
    """
    container = open_container(bundle)
    text, manifest = read_manifest(container, public_key)
    sha256 = hashlib.sha256(text).hexdigest()
    yield Check("signature", signature_state(container, public_key))
    yield Check(MANIFEST_NAME, f"{model_id(manifest.name, sha256)}, {len(manifest.taxonomy.ids)} tags")
    for file in manifest.files.values():
        read_file(container, file)
        yield Check(file.file, f"{file.size:,} bytes, sha256 {file.sha256[:12]}")
    refuse_unstated(container, manifest)
    yield Check("other files", "none")
    for variant in manifest.variants:
        loaded = load_bundle(bundle, variant, public_key=public_key)
        if loaded.sha256 != sha256:
            raise BundleError(f"{bundle} was exchanged while it was verified")
        n_nets = len(manifest.nets)
        yield Check(variant, f"{n_nets} net{'s' * (n_nets > 1)}, shapes and label counts as stated")
        tolerance = manifest.golden.tolerance[variant]
        for name, difference in Tagger(loaded).golden_differences.items():
            found = f"differs by {difference:.6f} on {_windows(len(loaded.golden.pcm))}, {tolerance} allowed"
            yield Check(f"{variant} {name}", found)
    for name, files in manifest.nets.items():
        for unused in files.keys() - set(manifest.variants):
            yield Check(f"{unused} {name}", "never loaded: not every net has this variant")


def _windows(n: int) -> str:
    return f"{n} golden window{'s' * (n > 1)}"
