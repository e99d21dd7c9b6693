"""`edgetag bench`: what a bundle costs on this machine, as a table or as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetag.terminal import print_rendered, print_text

if TYPE_CHECKING:
    from rich.table import Table

    from edgetag.tagging.choice import Finding

SECONDS = 10.0


def bench(
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Bundle folder or archive; the installed one, or the starter, if absent."
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, help="Threads of one net.")] = 1,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="FILE", help="Whose signature it must bear (NAME.pub)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure what a window costs here, int8 beside fp32; keep it for `runtime.variant: auto`.

    Example: edgetag bench --bundle my-bundle
    """
    import msgspec

    from edgetag.contract.manifest import model_id
    from edgetag.state import state_directory
    from edgetag.tagging import choice
    from edgetag.tagging.store import store_in

    state = state_directory()
    path = bundle or store_in(state).current_or_starter()
    finding = choice.bench(path, threads=threads, public_key=public_key, seconds=SECONDS)
    if len(finding.costs) > 1:
        choice.keep(state, finding)
    if as_json:
        print_text(msgspec.json.encode(finding).decode())
    else:
        what = f"{model_id(finding.bundle, finding.sha256)}, medians of {finding.windows} windows"
        print_rendered(str(finding.machine), what, _table(finding), _verdict(finding))


def _table(finding: "Finding") -> "Table":
    from rich.table import Table

    both = len(finding.costs) > 1
    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for variant in finding.costs:
        table.add_column(f"{variant} CPU", justify="right")
        table.add_column("wall", justify="right", style="dim")
    if both:
        table.add_column("int8/fp32 CPU", justify="right")
        table.add_column("wall", justify="right", style="dim")
    for row in next(iter(finding.costs.values())):
        costs = [rows[row] for rows in finding.costs.values()]
        cells = [f"{ms:.1f}" for cost in costs for ms in (cost.cpu_ms, cost.wall_ms)]
        if both:
            int8, fp32 = finding.costs["int8"][row], finding.costs["fp32"][row]
            cells += [_ratio(int8.cpu_ms, fp32.cpu_ms), _ratio(int8.wall_ms, fp32.wall_ms)]
        table.add_row(row, *cells, style="bold" if row.endswith("window") else "")
    memory = [cell for variant in finding.costs for cell in (f"{finding.resident_mb[variant]:.0f}", "")]
    ratio = [_ratio(finding.resident_mb["int8"], finding.resident_mb["fp32"]), ""] if both else []
    table.add_row("memory, MB", *memory, *ratio)
    return table


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b > 0 else ""


def _verdict(finding: "Finding") -> str:
    if len(finding.costs) == 1:
        return f"{finding.faster} is the only variant."
    return f"{finding.faster} costs less CPU time here, a third of the branches counted; `auto` takes it."
