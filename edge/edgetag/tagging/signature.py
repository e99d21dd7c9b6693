"""Who made a bundle: an Ed25519 signature over the bytes of `bundle.yaml`, which state every other file's
hash.

`bundle.yaml.sig` is the raw 64-byte signature, so that other tools agree:
`openssl pkeyutl -verify -pubin -inkey NAME.pub -rawin -in bundle.yaml -sigfile bundle.yaml.sig`.

Keys are PEM files: NAME.key (PKCS #8, mode 0600) and NAME.pub (SubjectPublicKeyInfo). What a private key
holds goes into no message: the library's own errors are not quoted.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgetag.contract.errors import BundleError, InputError, OutputError
from edgetag.contract.manifest import MANIFEST_NAME, SIGNATURE_BYTES, SIGNATURE_NAME
from edgetag.tagging.container import Container, NotPlainError, read_plain_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_KEY_BYTES = 2**16


def check_signature(container: Container, manifest: bytes, public_key: Path) -> None:
    """Whether the holder of the key's private half signed exactly these bytes of `bundle.yaml`.

    Raises:
        BundleError: the bundle is unsigned, or the signature is not of this key over these bytes.
        InputError: the key cannot be used, or the `cryptography` library is not installed.
    """
    key = read_public_key(public_key)
    if SIGNATURE_NAME not in container.names():
        raise BundleError(
            f"{container.path} is not signed: {public_key} was given, but there is no {SIGNATURE_NAME}"
        )
    signature = container.read(SIGNATURE_NAME, SIGNATURE_BYTES)
    if not is_valid(manifest, signature, key):
        raise BundleError(
            f"{container.path / SIGNATURE_NAME} is not the signature of {MANIFEST_NAME} by {public_key}: "
            "the bundle was altered, or signed with another key"
        )


def signature_state(container: Container, public_key: Path | None) -> str:
    """In words, of a bundle whose manifest was read with this key (`read_manifest`)."""
    if public_key is not None:
        return f"valid for {public_key}"
    return "not checked, no key given" if SIGNATURE_NAME in container.names() else "none"


def is_valid(manifest: bytes, signature: bytes, key: "Ed25519PublicKey") -> bool:
    """Whether `signature` is the key's over `manifest`."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return False
    return True


def sign(manifest: bytes, key: "Ed25519PrivateKey") -> bytes:
    """The raw signature over the bytes of `bundle.yaml`.

    Shape: 64 bytes
    """
    return key.sign(manifest)


def create_keys(name: Path, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """Write a new pair, NAME.key and NAME.pub; the former is encrypted if there is a passphrase.

    Returns:
        The two files.

    Raises:
        InputError: one of them exists, or the `cryptography` library is not installed.
        OutputError: they cannot be written; neither is left behind.
    """
    _need_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key, pub = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    _write_new(key, private_pem, 0o600)
    try:
        _write_new(pub, public_pem, 0o644)
    except BaseException:
        key.unlink(missing_ok=True)
        raise
    return key, pub


def read_public_key(file: Path) -> "Ed25519PublicKey":
    """An Ed25519 public key from a PEM file.

    Raises:
        InputError: it cannot be read or is no such key, or the `cryptography` library is not installed.
    """
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_pem(file)
    if b"PRIVATE KEY-----" in data:
        raise InputError(f"{file} is a private key; give its public half, NAME.pub, and keep this one secret")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{file} holds no public key in PEM that can be read") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{file} is {_kind(key)} key; a bundle is signed with an Ed25519 key")
    return key


def read_private_key(file: Path, ask_passphrase: Callable[[], bytes]) -> "Ed25519PrivateKey":
    """An Ed25519 private key from a PEM file; `ask_passphrase` is called if it is encrypted.

    Raises:
        InputError: it cannot be read or is no such key, the passphrase is wrong, or the `cryptography`
            library is not installed.
    """
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_pem(file)
    if b"PRIVATE KEY-----" not in data:
        raise InputError(f"{file} is no private key; signing needs NAME.key")
    passphrase = None
    if b"BEGIN ENCRYPTED" in data or b"Proc-Type: 4,ENCRYPTED" in data:
        passphrase = ask_passphrase()
    try:
        key = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "cannot be read with this passphrase" if passphrase else "cannot be read"
        raise InputError(f"{file} {reason}; is it an Ed25519 key of `edgetag bundle keygen`?") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{file} is {_kind(key)} key; a bundle is signed with an Ed25519 key")
    return key


def _need_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise InputError(
            "signatures need the cryptography library; install it with: "
            f"{sys.executable} -m pip install cryptography"
        ) from None


def _read_pem(file: Path) -> bytes:
    try:
        data = read_plain_file(file, MAX_KEY_BYTES, follow=True)
    except NotPlainError as error:
        raise InputError(f"key {file} is {error}, not a file") from None
    except OSError as error:
        raise InputError(f"key {file} cannot be read ({error.strerror})") from None
    if len(data) > MAX_KEY_BYTES or b"-----BEGIN " not in data:
        raise InputError(f"{file} is not a key in PEM (it would begin with -----BEGIN)")
    return data


def _kind(key: object) -> str:
    """`an RSA`, from the library's class names such as `RSAPublicKey`."""
    name = type(key).__name__.lstrip("_").partition("Public")[0].partition("Private")[0]
    return f"{'an' if name[:1] in 'AEIORX' else 'a'} {name}"


def _write_new(file: Path, data: bytes, mode: int) -> None:
    """A file that was not there before; it is never readable with another mode, and never half there."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise InputError(f"{file} exists, and keys are never overwritten; choose another name") from None
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OutputError(f"{file} cannot be written ({error.strerror})") from error
