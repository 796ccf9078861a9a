"""Every command's help says what it does and shows an example that its own parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from ablate.cli import app


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))
    else:
        yield path, group


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_has_an_example_that_the_command_takes(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    example = re.fullmatch(r"Example: dsv3-ablate (.*)", command.epilog or "")
    assert example, "an epilog with an example"
    words = shlex.split(example[1])
    shown = path[:-1] if command.hidden else path  # a study file is the default of its group
    assert tuple(words[: len(shown)]) == shown
    command.make_context("example", words[len(shown) :], resilient_parsing=False)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    options = [p for p in COMMANDS[path].params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    assert [p.name for p in options if not p.help] == []
