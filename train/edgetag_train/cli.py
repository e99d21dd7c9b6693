"""`edgetag train …`: fit, evaluate, export. Heavy imports happen in the command that needs them."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from edgetag.contract.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Train, evaluate and export models (needs the extra 'train').")

RecipeArgument = Annotated[str, typer.Argument(help="Name of a recipe that ships, or a .yaml file.")]
DataOption = Annotated[
    Path,
    typer.Option("--data", help="Folder with clips/manifest.csv and sonyc/annotations.csv.", exists=True),
]


@app.callback()
def _needs_extra() -> None:
    from edgetag.log import configure

    configure(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that are not needed
    try:
        import torch as torch
    except ImportError:
        raise InputError("the trainer is not installed: pip install 'edgetag[train]'") from None


@app.command()
def fit(
    recipe: RecipeArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run directory; nets that are there are kept.")],
) -> None:
    """Train every net of a recipe.

    Example: edgetag train fit starter --data ../shared/audio --out runs/starter
    """
    from edgetag_train.fit.system import fit_system
    from edgetag_train.recipe import read_recipe

    fit_system(read_recipe(recipe), data, out)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    data: DataOption,
    split: Annotated[str, typer.Option("--split", help="Split of sonyc/annotations.csv.")] = "validate",
) -> None:
    """Score a bundle on annotated recordings: the DCASE 2019 Task 5 coarse figures, as JSON.

    Example: edgetag train evaluate runs/bundle --data ../shared/audio
    """
    import json

    from edgetag.tagging.tagger import Tagger
    from edgetag_train.evaluate import score_bundle

    typer.echo(json.dumps(score_bundle(Tagger.load(bundle), data, split), indent=1))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory of `edgetag train fit`.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Bundle directory to write.")],
    fp32: Annotated[
        bool, typer.Option("--fp32/--no-fp32", help="Ship the fp32 nets beside the int8 ones.")
    ] = False,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the bundle.")] = "unspecified",
    summary: Annotated[str, typer.Option("--summary", help="One line for people.")] = "",
    note: Annotated[str, typer.Option("--note", help="What the figures do not say.")] = "",
    version: Annotated[
        str, typer.Option("--version", help="The bundle's version; today's date if absent.")
    ] = "",
) -> None:
    """Export a run to ONNX (int8, and fp32 on demand), score it on the validate split, write the bundle.

    Example: edgetag train export runs/starter --data ../shared/audio --out runs/bundle
    """
    from edgetag_train.export import export_run

    about = {
        "version": version or datetime.now(UTC).strftime("%Y.%m.%d"),
        "licence": licence,
        "summary": summary,
    }
    export_run(run, data, out, ("fp32", "int8") if fp32 else ("int8",), about, note)
