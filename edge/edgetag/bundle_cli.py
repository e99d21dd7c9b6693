"""`edgetag bundle …`: look at bundles, check, pack and sign them. Heavy imports happen in the command."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetag.contract.errors import InputError
from edgetag.terminal import print_rendered, print_text

if TYPE_CHECKING:
    from edgetag.tagging.store import BundleStore

PASSPHRASE_VARIABLE = "EDGETAG_KEY_PASSPHRASE"  # noqa: S105  its name

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at bundles, check, pack, sign and install them. A bundle is a folder, or an archive of one.",
)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder or archive.")]
BundleOrStarter = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="Bundle folder or archive; the starter bundle if absent."),
]
PublicKey = Annotated[
    Path | None,
    typer.Option("--public-key", metavar="FILE", help="Whose signature it must bear (NAME.pub)."),
]


@app.command()
def inspect(
    bundle: BundleOrStarter = None,
    public_key: PublicKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is stated, for programs.")] = False,
) -> None:
    """Show a bundle's card: what it hears, how well, on what it was trained. Nothing of it is run.

    Example: edgetag bundle inspect my-bundle
    """
    import hashlib

    from edgetag.tagging.bundle import read_manifest, starter_path
    from edgetag.tagging.card import Card
    from edgetag.tagging.container import open_container
    from edgetag.tagging.signature import signature_state

    container = open_container(bundle or starter_path())
    text, manifest = read_manifest(container, public_key)
    card = Card(manifest, hashlib.sha256(text).hexdigest(), signature_state(container, public_key))
    if as_json:
        print_text(card.json())
    else:
        print_rendered(card)


@app.command()
def verify(bundle: BundleOrStarter = None, public_key: PublicKey = None) -> None:
    """Check everything of every variant: signature, files, nets, golden windows. Ends at the first refusal.

    Example: edgetag bundle verify my-bundle --public-key acme.pub
    """
    from edgetag.contract.errors import printable
    from edgetag.tagging.bundle import starter_path
    from edgetag.tagging.verification import verify

    for check in verify(bundle or starter_path(), public_key):
        print_text(printable(f"ok  {check.subject:20}  {check.found}"))


@app.command()
def pack(
    bundle: Bundle,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The archive, or a folder for it; NAME-VERSION.zip if absent."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Verify a bundle and write it as one archive: the same bytes for the same bundle, on every machine.

    Example: edgetag bundle pack my-bundle --out my-bundle.zip
    """
    import hashlib

    from edgetag.tagging.packing import pack

    archive = pack(bundle, out, force=force)
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    print_text(f"{archive}: {archive.stat().st_size:,} bytes, sha256 {digest}")


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive of `edgetag bundle pack`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, empty or not there yet.")],
    public_key: PublicKey = None,
) -> None:
    """Write an archive's files into a folder, each checked against the manifest.

    Example: edgetag bundle unpack my-bundle.zip my-bundle
    """
    from edgetag.tagging.packing import unpack

    folder = unpack(archive, out, public_key)
    print_text(f"{folder}: {sum(1 for _ in folder.iterdir())} files")


@app.command()
def keygen(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="NAME.key and NAME.pub are written.")],
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help=f"Encrypt NAME.key; asks, unless {PASSPHRASE_VARIABLE} is set."),
    ] = False,
) -> None:
    """Make a pair of keys (Ed25519): NAME.key signs and stays secret, NAME.pub goes to the sensors.

    Example: edgetag bundle keygen acme
    """
    from edgetag.tagging.signature import create_keys

    if name.suffix in (".key", ".pub") or not name.name:
        raise InputError(f"{name} is no name for a pair of keys; give NAME of NAME.key and NAME.pub")
    key, public = create_keys(
        name, _passphrase(f"Passphrase for {name}.key", new=True) if passphrase else None
    )
    print_text(f"{key}: signs bundles; keep it secret\n{public}: for the sensors, and anybody else")


@app.command()
def sign(
    bundle: Bundle,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key (NAME.key).")],
) -> None:
    """Sign a bundle where it lies; an earlier signature is replaced.

    A passphrase is asked for, or taken from EDGETAG_KEY_PASSPHRASE.

    Example: edgetag bundle sign my-bundle.zip --key acme.key
    """
    from edgetag.tagging import signature
    from edgetag.tagging.packing import put_signature

    private = signature.read_private_key(key, lambda: _passphrase(f"Passphrase of {key}"))
    put_signature(bundle, lambda manifest: signature.sign(manifest, private))
    print_text(f"{bundle}: signed with {key}")


@app.command()
def install(bundle: Bundle, public_key: PublicKey = None) -> None:
    """Copy a bundle into the state directory and make it the one that hears next; the one before is kept.

    Every variant is checked first, where it will be read from. If it does not pass, nothing has changed.

    For an installed service, as that service, whose state directory it is:

    sudo systemd-run --pipe --wait -p User=edgetag -p StateDirectory=edgetag edgetag bundle install FILE

    Example: edgetag bundle install my-bundle.zip --public-key acme.pub
    """
    print_text(_hears_next(_store().install(bundle, public_key)))


@app.command()
def rollback(public_key: PublicKey = None) -> None:
    """Go back to the bundle that was installed before; once more comes back again.

    Example: edgetag bundle rollback
    """
    print_text(_hears_next(_store().rollback(public_key)))


def _store() -> "BundleStore":
    from edgetag.state import service_directory
    from edgetag.tagging.store import store_in

    return store_in(service_directory())


def _hears_next(folder: Path) -> str:
    return f"{folder} hears next; a running edgetag takes it on SIGHUP (systemctl reload edgetag)"


def _passphrase(prompt: str, *, new: bool = False) -> bytes:
    """From the environment, or from whoever sits at the terminal.

    Raises:
        InputError: neither has one.
    """
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return os.fsencode(given)
    if not (sys.stdin and sys.stdin.isatty()):
        raise InputError(f"a passphrase is needed, and there is no terminal; set {PASSPHRASE_VARIABLE}")
    answer: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=new, err=True)
    return answer.encode()
