"""`edgetag train …`. Heavy imports happen in the command that needs them."""

import logging
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetag.contract.errors import InputError, install

if TYPE_CHECKING:
    import torch

    from edgetag_train.embedding import Embedding
    from edgetag_train.evaluate import Scored

app = typer.Typer(no_args_is_help=True, help="Train, evaluate and export models (needs the extra 'train').")

DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Folder with annotations.csv (taxonomy.yaml: your own tags), or one with sonyc/ and clips/.",
        exists=True,
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Where features are kept; ~/.cache/edgetag/features if absent."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out recordings that are missing or unreadable.")
]
EmbeddingOption = Annotated[
    Path | None,
    typer.Option("--embedding", help="Folder of `edgetag train embedding`, for nets that take one."),
]

_STATS_COLUMNS = 100


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    fp32 = "fp32"
    int8 = "int8"


@app.callback()
def _needs_extra() -> None:
    from edgetag.log import configure

    configure(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that are not needed
    try:
        import torch as torch
    except ImportError:
        raise InputError(f"the trainer is not installed: {install('train')}") from None


@app.command()
def stats(
    dataset: Annotated[Path, typer.Argument(help="annotations.csv, or the folder that holds it.")],
    agreement: Annotated[
        float, typer.Option("--agreement", help="Present when more than this share of the votes says so.")
    ] = 0.5,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Count recordings and labels per split and class, and how far annotators agree.

    Tags are those of taxonomy.yaml beside the table; SONYC-UST's, where there is none.

    Example: edgetag train stats sonyc-ust
    """
    from edgetag_train.data import stats as counting

    found = counting.stats(dataset, agreement)
    if json:
        _print_json(found)
    else:
        from rich.console import Console

        console = Console()
        console.width = max(console.width, _STATS_COLUMNS)  # a pipe is 80 wide, too little for three splits
        console.print(*counting.render(found), sep="\n")


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships, or a .yaml file.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run directory.")],
    embedding: EmbeddingOption = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="yamnet.tflite, for recipes with a teacher_share.", exists=True),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Take the root net of this run, if it is the same.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a recipe's value: root.epochs=20")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[
        Device, typer.Option("--device", help="Where to compute; auto is CUDA where torch finds it.")
    ] = Device.auto,
    cache: CacheOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Train every net of a recipe. Ctrl-C and SIGTERM save and stop; --resume goes on.

    Example: edgetag train fit hierarchical2 --data sonyc-ust --embedding vggish --out runs/h2
    """
    from edgetag_train.data.dataset import read_dataset_taxonomy
    from edgetag_train.data.features import default_cache
    from edgetag_train.data.training import prepare
    from edgetag_train.fit.begin import check_start
    from edgetag_train.fit.stopping import Stopped
    from edgetag_train.fit.system import fit_system
    from edgetag_train.recipe import read_recipe
    from edgetag_train.sentences import fitted

    read = read_recipe(recipe, overrides or [])
    taxonomy = read_dataset_taxonomy(data)
    read.check(taxonomy)
    found = _embedding(embedding, read.fusion)
    if (teacher is None) != (not read.data.teacher_share):
        raise InputError(
            "this recipe is taught by a teacher, too (data.teacher_share): give it with --teacher"
            if teacher is None
            else "this recipe has no teacher_share; leave out --teacher"
        )
    chosen = _device(device)
    check_start(read, taxonomy, out, root=root, resume=resume)
    windows = prepare(
        read.data,
        data,
        cache or default_cache(),
        embedding=found and found.paths["fp32"],
        teacher=teacher,
        validated=read.validates,
        skip_bad=skip_bad,
    )
    try:
        fit_system(
            read,
            windows,
            out,
            embedding=found,
            root=root,
            resume=resume,
            device=chosen,
            overrides=overrides or [],
        )
    except Stopped as stopped:
        typer.echo(f"edgetag: {stopped}; go on with --resume", err=True)
        raise typer.Exit(stopped.exit_code) from None
    typer.echo(fitted(out, data, embedding, cache, skip_bad=skip_bad), err=True)


@app.command()
def evaluate(
    target: Annotated[
        Path, typer.Argument(help="Run directory, bundle directory, or predictions.csv.", exists=True)
    ],
    data: DataOption,
    split: Annotated[
        str, typer.Option("--split", help="A split of the table, or `scenes` (of held-out clips; runs only).")
    ] = "validate",
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here, too.")] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write the scores as the challenge wants them.")
    ] = None,
    embedding: EmbeddingOption = None,
    cache: CacheOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Compute the figures of DCASE 2019 Task 5 and print them as JSON.

    A run of two systems (CNN+VGGish1 and 2) gives one object per system.

    Example: edgetag train evaluate runs/h2 --data sonyc-ust --embedding vggish --json h2.json
    """
    from edgetag_train.evaluate import submission_figures
    from edgetag_train.predictions import figures, write_predictions

    if target.is_file():
        if predictions:
            raise InputError(f"{target} is a table of predictions already; leave out --predictions")
        result = submission_figures(target, data, split)
    else:
        scored = _scored(target, data, split, embedding, cache, skip_bad=skip_bad)
        found = {
            name: figures(one.filenames, one.scores, one.filenames, one.truth, one.taxonomy, split=split)
            for name, one in scored.items()
        }
        result = found if len(found) > 1 else next(iter(found.values()))
        if predictions:
            if len(scored) > 1:
                raise InputError(f"{target} is {len(scored)} systems; --predictions writes one")
            one = next(iter(scored.values()))
            write_predictions(predictions, one.filenames, one.scores, one.taxonomy)
    _print_json(result)
    if json:
        _write_json(json, result)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, evaluated.", exists=True)],
    out: Annotated[Path, typer.Option("--out", help="A .html or .md file.")],
) -> None:
    """Set runs beside the paper's Table 4, with curves and confusions.

    Example: edgetag train report runs/* --out report.html
    """
    from edgetag_train.report import write_report

    write_report(runs, out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory of `edgetag train fit`.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Bundle directory to write.")],
    embedding: EmbeddingOption = None,
    only: Annotated[
        Precision | None, typer.Option("--only", help="Ship one variant; fp32 and int8 if absent.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write the bundle even if int8 costs more than it may.")
    ] = False,
    max_fires: Annotated[
        bool, typer.Option("--max-fires", help="The paper's rule: the likeliest category's branch fires too.")
    ] = False,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the bundle.")] = "unspecified",
    summary: Annotated[str, typer.Option("--summary", help="One line for people.")] = "",
    note: Annotated[str, typer.Option("--note", help="What the figures do not say.")] = "",
    version: Annotated[
        str, typer.Option("--version", help="The bundle's version; today's date if absent.")
    ] = "",
    cache: CacheOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Export a run to ONNX (fp32 and int8), score it on the validate split, write the bundle.

    Where int8 loses too much against fp32, more layers stay in float; if that does not help, nothing is
    written and an older bundle stays as it is.

    Example: edgetag train export runs/h2 --data sonyc-ust --embedding vggish --out bundle
    """
    from edgetag.contract.manifest import VARIANTS
    from edgetag_train.data.features import default_cache
    from edgetag_train.export import export_run
    from edgetag_train.sentences import exported

    about = {
        "version": version or datetime.now(UTC).strftime("%Y.%m.%d"),
        "licence": licence,
        "summary": summary,
    }
    manifest = export_run(
        run,
        data,
        out,
        VARIANTS if only is None else (only.value,),
        about,
        cache=cache or default_cache(),
        embedding=_read_embedding(embedding),
        policy="threshold_or_max" if max_fires else "threshold",
        note=note,
        skip_bad=skip_bad,
        force=force,
    )
    typer.echo(exported(out, manifest), err=True)


@app.command()
def embedding(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    weights: Annotated[
        Path | None, typer.Option("--weights", help="VGGish: vggish-10086976.pth or vggish_model.ckpt.")
    ] = None,
    pca: Annotated[
        Path | None, typer.Option("--pca", help="Its PCA parameters: vggish_pca_params….pth or .npz.")
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(
            "--random", min=0, max=2**63 - 1, help="Random weights of this seed instead, to rehearse with."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="Folder of recordings for int8; a synthetic street if absent."),
    ] = None,
) -> None:
    """Export VGGish (fp32 and int8) for nets that take an embedding.

    Example: edgetag train embedding vggish --weights vggish-10086976.pth --pca vggish_pca_params-970ea276.pth
    """
    from edgetag_train.embedding import export_vggish

    export_vggish(out, weights, pca, seed=random, calibrate=calibrate)


@app.command()
def attribution(
    out: Annotated[Path, typer.Argument(help="Markdown file to write.")],
    data: DataOption,
    sounds: Annotated[
        list[Path] | None, typer.Option("--sounds", help="Folder of further sounds; may be given again.")
    ] = None,
) -> None:
    """List who made the sounds that a bundle was trained on, by licence.

    Example: edgetag train attribution ATTRIBUTION.md --data sonyc-ust --sounds sounds
    """
    from edgetag_train.attribution import write_attribution

    write_attribution(data, sounds or [], out)


@app.command()
def teach(
    out: Annotated[Path, typer.Argument(help="Embedding folder to write.")],
    data: DataOption,
    teacher: Annotated[
        Path,
        typer.Option("--teacher", help="yamnet.tflite, with yamnet_class_map.csv beside it.", exists=True),
    ],
    sounds: Annotated[
        list[Path] | None, typer.Option("--sounds", help="Folder of further sounds; may be given again.")
    ] = None,
    mixtures: Annotated[
        int, typer.Option("--mixtures", min=1, help="Ten-second mixtures to learn from.")
    ] = 20_000,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over them.")] = 10,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**62, help="Draws weights, mixtures and their order.")
    ] = 0,
    cache: CacheOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Teach a small embedding net what YAMNet hears, for nets that take an embedding.

    Run again after Ctrl-C, it goes on where it was.

    Example: edgetag train teach embedding --data sonyc-ust --teacher yamnet.tflite --sounds sounds
    """
    from edgetag_train.data.features import default_cache
    from edgetag_train.fit.stopping import Stopped
    from edgetag_train.teaching.teach import teach as run

    try:
        run(
            data,
            sounds or [],
            teacher,
            out,
            cache or default_cache(),
            mixtures=mixtures,
            epochs=epochs,
            seed=seed,
            skip_bad=skip_bad,
        )
    except Stopped as stopped:
        typer.echo(f"edgetag: {stopped}; run the same again to go on", err=True)
        raise typer.Exit(stopped.exit_code) from None


def _scored(
    target: Path, data: Path, split: str, embedding: Path | None, cache: Path | None, *, skip_bad: bool
) -> "dict[str, Scored]":
    """Scores by system of a bundle or a run. A run keeps its scores, for `edgetag train report`."""
    from edgetag_train.data.features import default_cache
    from edgetag_train.evaluate import bundle_scores, run_scores
    from edgetag_train.fit.run import EVALUATION, check_embedding, read_run

    if (target / "bundle.yaml").exists():
        from edgetag.tagging.tagger import Tagger

        return {target.name: bundle_scores(Tagger.load(target), data, split, skip_bad=skip_bad)}
    run = read_run(target)
    found = _read_embedding(embedding)
    check_embedding(run, found)
    fp32 = found and found.paths["fp32"]
    scored = run_scores(run, data, split, cache or default_cache(), fp32, skip_bad=skip_bad)
    for name, one in scored.items():
        one.save(target / EVALUATION / split / f"{name}.npz")
    return scored


def _embedding(folder: Path | None, fusion: str) -> "Embedding | None":
    """The embedding that a recipe's fusion asks for, and none that it does not."""
    if fusion == "none" and folder is not None:
        raise InputError("this recipe's nets take no embedding (fusion: none); leave out --embedding")
    if fusion != "none" and folder is None:
        raise InputError(
            f"this recipe's nets take an embedding (fusion: {fusion}): give its folder with --embedding. "
            "Make one with `edgetag train embedding`, or take the recipe without (…_cnn)"
        )
    return _read_embedding(folder)


def _read_embedding(folder: Path | None) -> "Embedding | None":
    from edgetag_train.embedding import read_embedding

    return None if folder is None else read_embedding(folder)


def _device(device: Device) -> "torch.device":
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device here; use --device cpu")
    if device is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device.value)


def _print_json(value: Any) -> None:  # noqa: ANN401  any JSON value
    import json

    typer.echo(json.dumps(value, indent=1))


def _write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    import json

    from edgetag_train.files import writing

    with writing(path):
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
