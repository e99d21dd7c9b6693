"""`edgetag --help` and its commands': a table of contents, examples that parse, exit codes, completion."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer

from edgetag import cli
from edgetag.contract.errors import EdgetagError
from edgetag.deadline import INTERRUPTED_EXIT


def found_commands() -> Any:
    """The whole tree, the trainer's commands included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["edgetag"])
        patch.setattr(cli.app, "registered_groups", list(cli.app.registered_groups))
        cli._add_found_commands()
        return typer.main.get_command(cli.app)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield from (
            commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]
        )


TREE = found_commands()
COMMANDS = dict(commands(TREE))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    """Up to what is a shell's: options are spelt as they are, no argument is too many."""
    command = COMMANDS[path]
    examples = re.search(r"^\s*Examples?: (edgetag .*)$", command.help, re.MULTILINE)
    assert examples, "no example"
    for example in examples[1].split("; "):
        words = shlex.split(re.split(r" [|>] ", example)[0])
        assert tuple(words[1 : 1 + len(path)]) == path
        context = click.Context(command)
        left_over = command.make_parser(context).parse_args(words[1 + len(path) :])[1]
        assert not left_over


def test_every_command_is_in_a_chapter() -> None:
    """None is left over under the heading that Typer has for those without."""
    assert {command.rich_help_panel for command in TREE.commands.values()} == {
        *(cli._BEGIN, cli._HEAR, cli._WATCH, cli._KEEP, cli._TRAIN)
    }


def test_exit_codes_are_listed() -> None:
    """Those of the error tree, and that of Ctrl-C."""
    codes = {
        0,
        INTERRUPTED_EXIT,
        *(kind.exit_code for kind in [EdgetagError, *EdgetagError.__subclasses__()]),
    }
    listed = re.findall(r"(\d+) [a-z]", TREE.epilog)
    assert {int(code) for code in listed} == codes


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        f"{' '.join(path)}: {parameter.name}"
        for path, command in COMMANDS.items()
        for parameter in command.params
        if not parameter.help
    ]
    assert not silent


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("re", {"replay"}),
        ("bundle in", {"inspect", "install"}),
        ("train ex", {"export"}),
        ("replay --rea", {"--realtime"}),
        ("replay --format c", {"csv"}),
    ],
)
def test_completion(typed: str, offered: set[str]) -> None:
    """What bash is told when Tab is pressed."""
    words = f"edgetag {typed}"
    asked = {"_EDGETAG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['edgetag']; from edgetag.cli import main; main()"],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered
