"""Signatures: with a public key, nothing of a bundle is read but what its owner signed."""

import builtins
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetag import Tagger
from edgetag.contract.errors import BundleError, InputError
from edgetag.tagging.bundle import load_bundle
from edgetag.tagging.signature import create_keys, read_private_key, read_public_key, sign
from fakes_bundle import edit_manifest, write_bundle

ROOT_8 = [0.9] + [0.1] * 7


def no_passphrase() -> bytes:
    raise AssertionError("asked for a passphrase of a key that has none")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return create_keys(tmp_path_factory.mktemp("keys") / "lamp")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    path = write_bundle(tmp_path / "bundle", ROOT_8)
    sign_folder(path, keys[0])
    return path


def sign_folder(path: Path, key: Path) -> None:
    signature = sign((path / "bundle.yaml").read_bytes(), read_private_key(key, no_passphrase))
    (path / "bundle.yaml.sig").write_bytes(signature)


def test_a_signed_bundle_loads_with_its_key_and_without_one(signed: Path, keys: tuple[Path, Path]) -> None:
    """A signature is asked for where a key is configured, and is no hindrance elsewhere."""
    assert Tagger.load(signed, public_key=keys[1]).bundle.sha256 == load_bundle(signed).sha256


def flip_the_signature(path: Path) -> None:
    signature = bytearray((path / "bundle.yaml.sig").read_bytes())
    signature[10] ^= 1
    (path / "bundle.yaml.sig").write_bytes(signature)


def sign_with_another_key(path: Path) -> None:
    sign_folder(path, create_keys(path.parent / "other")[0])


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an unsigned bundle": (lambda p: (p / "bundle.yaml.sig").unlink(), "is not signed"),
    "an altered manifest": (lambda p: edit_manifest(p, summary="better"), "was altered, or signed with"),
    "an altered signature": (flip_the_signature, "was altered, or signed with"),
    "another key's signature": (sign_with_another_key, "was altered, or signed with"),
    "an empty signature": (lambda p: (p / "bundle.yaml.sig").write_bytes(b""), "was altered, or signed with"),
    "a long signature": (
        lambda p: (p / "bundle.yaml.sig").write_bytes((p / "bundle.yaml.sig").read_bytes() + b"\n"),
        "was altered, or signed with",
    ),
    "a manifest that is no YAML": (
        lambda p: (p / "bundle.yaml").write_bytes(b"{"),
        "was altered, or signed with",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), CASES.values(), ids=CASES.keys())
def test_what_the_owner_did_not_sign_is_refused_unread(
    signed: Path, keys: tuple[Path, Path], damage: Callable[[Path], object], sentence: str
) -> None:
    """The signature comes first: even a manifest that is no YAML is refused for its signature."""
    damage(signed)
    with pytest.raises(BundleError, match=sentence):
        load_bundle(signed, public_key=keys[1])


def test_a_signed_manifest_vouches_for_every_file(signed: Path, keys: tuple[Path, Path]) -> None:
    """A net that was exchanged under a valid signature is refused for its hash."""
    net = bytearray((signed / "root.onnx").read_bytes())
    net[60] ^= 1
    (signed / "root.onnx").write_bytes(net)
    with pytest.raises(BundleError, match=r"root\.onnx is damaged or was altered"):
        load_bundle(signed, public_key=keys[1])


def foreign_public_key(path: Path, kind: str) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

    key: Any = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed448": ed448.Ed448PrivateKey.generate,
    }[kind]()
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (path / f"{kind}.pub").write_bytes(pem)
    return path / f"{kind}.pub"


@pytest.mark.parametrize(
    ("kind", "sentence"), [("rsa", "is an RSA key"), ("ec", "is an E"), ("ed448", "is an Ed448 key")]
)
def test_another_algorithm_is_named(signed: Path, kind: str, sentence: str) -> None:
    """Only Ed25519 signs bundles."""
    with pytest.raises(InputError, match=sentence):
        load_bundle(signed, public_key=foreign_public_key(signed.parent, kind))


def test_a_key_that_is_none_is_the_callers_fault(signed: Path, keys: tuple[Path, Path]) -> None:
    """Missing, a folder, a pipe, no PEM, PEM of nothing, private for public and the reverse: one sentence."""
    folder = signed.parent
    (folder / "text").write_text("not a key")
    (folder / "hollow").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    os.mkfifo(folder / "pipe")
    for file, sentence in {
        folder / "none": "No such file",
        folder: "a folder",
        folder / "pipe": "a pipe",
        folder / "text": "not a key in PEM",
        folder / "hollow": "no public key in PEM",
        keys[0]: "is a private key; give its public half",
    }.items():
        with pytest.raises(InputError, match=sentence):
            load_bundle(signed, public_key=file)
    with pytest.raises(InputError, match="no private key"):
        read_private_key(keys[1], no_passphrase)


def test_without_the_library_the_sentence_holds_the_remedy(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor with a key but no `cryptography` tags nothing, and says what to run."""
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="-m pip install cryptography"):
        load_bundle(signed, public_key=keys[1])
    load_bundle(signed)


def test_keys_are_private_and_never_overwritten(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """NAME.key is its owner's alone; an existing key, a link among them, survives."""
    assert keys[0].stat().st_mode & 0o777 == 0o600
    before = keys[0].read_bytes(), keys[1].read_bytes()
    with pytest.raises(InputError, match=r"lamp\.key exists"):
        create_keys(keys[0].with_suffix(""))
    assert (keys[0].read_bytes(), keys[1].read_bytes()) == before
    (tmp_path / "a.key").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists"):
        create_keys(tmp_path / "a")
    (tmp_path / "b.pub").write_text("mine")
    with pytest.raises(InputError, match=r"b\.pub exists"):
        create_keys(tmp_path / "b")
    assert not (tmp_path / "b.key").exists()


def test_a_passphrase_is_needed_and_checked(tmp_path: Path) -> None:
    """An encrypted key opens with its passphrase only, and no sentence repeats it."""
    key, pub = create_keys(tmp_path / "k", b"s3cret")
    assert b"ENCRYPTED" in key.read_bytes()
    assert read_private_key(key, lambda: b"s3cret").public_key() == read_public_key(pub)
    for wrong in (b"wr0ng", b""):
        with pytest.raises(InputError, match=r"k\.key cannot be read") as refusal:
            read_private_key(key, lambda wrong=wrong: wrong)  # type: ignore[misc]
        assert "wr0ng" not in str(refusal.value)


def test_no_repr_shows_a_private_key(keys: tuple[Path, Path]) -> None:
    """Neither PEM nor raw bytes, whatever prints a key."""
    key = read_private_key(keys[0], no_passphrase)
    shown = repr(key) + str(key)
    assert key.private_bytes_raw().hex() not in shown
    assert keys[0].read_text().splitlines()[1] not in shown


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_openssl_agrees(signed: Path, keys: tuple[Path, Path]) -> None:
    """The command of the module's docstring verifies what we signed, and refuses an altered manifest."""
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    command += ["-in", str(signed / "bundle.yaml"), "-sigfile", str(signed / "bundle.yaml.sig")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    edit_manifest(signed, summary="better")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
