"""`edgetag config …`: look at settings, check a file, print its schema. Imports happen in the command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetag.contract.errors import InputError, printable
from edgetag.terminal import print_text

if TYPE_CHECKING:
    from edgetag.config import Reading

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at settings and check them. EDGETAG_<SECTION>_<KEY> in the environment goes over the file.",
)


@app.command()
def show(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", readable=False, help="Configuration file; the defaults if absent."
        ),
    ] = None,
) -> None:
    """Print the settings in force as a configuration file, and where each that is no default comes from.

    Passwords are never shown, only where they are.

    Example: edgetag config show --config /etc/edgetag/edgetag.yaml
    """
    from edgetag.config import read

    print_text(as_yaml(read(config)))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="Configuration file.")],
) -> None:
    """Say "ok", or one sentence per fault. The environment's settings are looked at, too.

    Example: edgetag config check edgetag.yaml
    """
    from edgetag.config import read

    faults = read(file).faults
    for fault in faults:
        typer.echo(f"edgetag: {InputError(fault)}", err=True)
    if faults:
        raise typer.Exit(InputError.exit_code)
    print_text(printable(f"{file}: ok"))


@app.command()
def schema() -> None:
    """Print the JSON Schema (2020-12) of the configuration file, for editors and fleet tools.

    Example: edgetag config schema > edgetag.schema.json
    """
    import json

    from edgetag.config import json_schema

    print_text(json.dumps(json_schema(), indent=1, ensure_ascii=False))


def as_yaml(reading: "Reading") -> str:
    """The settings as a configuration file that reads as the same settings.

    Raises:
        InputError: there are faults.
    """
    import msgspec

    from edgetag.config import Settings

    defaults = msgspec.to_builtins(Settings())
    lines = []
    for section, values in msgspec.to_builtins(reading.accepted()).items():
        lines.append(f"{section}:")
        for key, value in values.items():
            is_default = value == defaults[section][key]
            origin = "" if is_default else reading.origins[f"{section}.{key}"]
            lines += (f"  {line}" for line in _setting(key, value, origin))
    return "\n".join(lines)


def _setting(key: str, value: Any, origin: str) -> list[str]:  # noqa: ANN401
    """A setting's lines, with its origin behind it or, where there are several, above it."""
    from edgetag.contract.strict_yaml import dump_yaml

    lines = dump_yaml({key: value}).decode("utf-8").splitlines()
    comment = f"# {printable(origin)}"
    if not origin:
        return lines
    return [f"{lines[0]}  {comment}"] if len(lines) == 1 else [comment, *lines]
