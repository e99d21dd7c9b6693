"""`edgetag fetch …`: public data and weights. Heavy imports happen in the command that needs them."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgetag.contract.errors import InputError, install

app = typer.Typer(no_args_is_help=True, help="Fetch public data and weights (needs the extra 'train').")

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if absent.")]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME", help="Only this file, e.g. annotations. Repeatable."),
]
FromOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--from", metavar="FILE", help="A file fetched by other means, or a folder of such. Repeatable."
    ),
]


class Version(StrEnum):
    v2 = "v2"
    v1 = "v1"


class Format(StrEnum):
    pytorch = "pytorch"
    tensorflow = "tensorflow"


@app.callback()
def _needs_extra() -> None:
    from edgetag.log import configure

    configure(logging.INFO)
    try:
        import pooch as pooch
    except ImportError:
        raise InputError(f"the trainer is not installed: {install('train')}") from None


@app.command()
def sonyc_ust(
    folder: FolderArgument,
    version: Annotated[
        Version,
        typer.Option("--version", help="v2: 18,510 recordings. v1: those of DCASE 2019, the paper's."),
    ] = Version.v2,
    only: OnlyOption = None,
    brought: FromOption = None,
    keep_archives: Annotated[
        bool,
        typer.Option("--keep-archives/--no-keep-archives", help="Keep archives that have been extracted."),
    ] = True,
) -> None:
    """Fetch SONYC-UST from Zenodo, check and extract it. An interrupted run is taken up where it ended.

    Example: edgetag fetch sonyc-ust sonyc-ust --only annotations --only audio-0
    """
    from edgetag_train.fetch import fetch
    from edgetag_train.published import SONYC_UST

    fetch(
        SONYC_UST[version],
        folder,
        only=only or (),
        brought=brought or (),
        keep_archives=keep_archives,
    )


@app.command()
def vggish(
    folder: FolderArgument,
    format: Annotated[
        Format, typer.Option("--format", help="The PyTorch port, or Google's TensorFlow checkpoint.")
    ] = Format.pytorch,
    only: OnlyOption = None,
    brought: FromOption = None,
) -> None:
    """Fetch the published VGGish weights and check them.

    Example: edgetag fetch vggish weights
    """
    from edgetag_train.fetch import fetch
    from edgetag_train.published import VGGISH

    fetch(VGGISH[format], folder, only=only or (), brought=brought or ())
