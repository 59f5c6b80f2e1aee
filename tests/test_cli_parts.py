"""The parts of the command line by themselves: settings, levels, defaults, names, and what is imported when."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from cli_calls import SETTINGS, call
from torch.distributed.run import get_args_parser

import sortify
from sortify import Frozen
from sortify.formats.members import named
from sortify_cli import settings, train
from sortify_cli.main import app
from sortify_cli.options import parse_levels, parse_names
from sortify_cli.show import amount, counted

CLI = Path(__file__).parent.parent / "cli"
COMMANDS = ("convert", "inspect", "order", "train", "evaluate", "profile", "report", "extract", "verify")


# -- sortify.toml -----------------------------------------------------------------------------------------------------


def settings_of(text: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What a settings file gives the commands."""
    (folder / "sortify.toml").write_text(text)
    return settings.read_settings(
        folder / "sortify.toml", settings.known_settings(typer.main.get_command(app).commands)
    )


def test_settings_reach_the_commands_that_have_them(tmp_path: Path) -> None:
    found = settings_of(SETTINGS + '[extract]\nbudget = 1\ndata = "other.npz"\n', tmp_path)
    assert found["convert"] == {"input": "2x1x8x8"}
    assert found["train"]["data"] == "data.npz"
    assert found["train"]["batch_size"] == 16
    assert found["extract"] == {"budget": ["1"], "data": "other.npz"}
    assert found["verify"] == {}


def test_one_dir_serves_every_command(tmp_path: Path) -> None:
    found = settings_of('dir = "nets"', tmp_path)
    assert {name: values["dir"] for name, values in found.items()} == dict.fromkeys(COMMANDS, "nets")


def test_a_folder_without_settings(tmp_path: Path) -> None:
    assert settings.read_settings(tmp_path / "sortify.toml", {}) == {}


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("4", 4),
        ("width=4,depth=2", {"width": 4, "depth": 2}),
        ("width=0.25,0.5,1,depth=3", {"width": (0.25, 0.5, 1.0), "depth": 3}),
        ("depth = 0.5, 1", {"depth": (0.5, 1.0)}),
        ("width=0.5", {"width": (0.5,)}),
    ],
)
def test_levels_are_counts_or_fractions(text: str, levels: Any) -> None:
    assert parse_levels(text, "--levels") == levels


@pytest.mark.parametrize("text", ["", "width", "width=", "=4", "width=a", "0.5,1", "width=1,width=2", "4,width=2"])
def test_levels_that_are_neither_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"levels|group"):
        parse_levels(text, "--levels")


@pytest.mark.parametrize(
    ("text", "names"), [(None, None), ("width, depth", ("width", "depth")), ("none", ()), ("width", ("width",))]
)
def test_names_of_groups(text: str | None, names: Any) -> None:
    assert parse_names(text) == names


def test_train_has_the_defaults_of_its_configuration() -> None:
    defaults = {name: p.default for name, p in inspect.signature(train.run).parameters.items()}
    assert train._config(defaults) == sortify.TrainConfig()
    assert train._config({**defaults, "lr": 1.0}) != sortify.TrainConfig()


def test_text_for_people() -> None:
    assert [amount(value) for value in (7, 999, 1234, 45_600_000)] == ["7", "999", "1.23k", "45.6M"]
    assert [counted(1, "axis", "axes"), counted(2, "axis", "axes"), counted(2, "block")] == [
        "1 axis",
        "2 axes",
        "2 blocks",
    ]
    told = Frozen("w dimension 2", "kernel size", "aten.conv2d.default", "stem.0", "net.py:7")
    assert sortify.describe.reason(told) == "aten.conv2d.default: kernel size"
    assert (
        sortify.describe.reason(Frozen("b dimension 0", "it is a dimension of the output"))
        == "it is a dimension of the output"
    )


def test_help_and_version_are_quick_because_torch_waits() -> None:
    code = "import sys, sortify_cli.main; print([m for m in ('torch', 'sortify', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert call(Path.cwd(), "--version").stdout.startswith("sortify ")
    for words in ([], ["--help"]):
        shown = call(Path.cwd(), *words).output
        assert all(name in shown for name in COMMANDS)


def typed(page: str) -> list[list[str]]:
    """The words of every `sortify ...` in the shell examples of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    calls = [re.split(r"-m sortify_cli |^sortify ", line)[-1] for line in lines if "sortify" in line]
    return [shlex.split(call.partition(">")[0]) for call in calls]


def parses(words: list[str]) -> bool:
    """Whether the command line takes these words."""
    commands = typer.main.get_command(app).commands
    try:
        commands[words[0]].make_context(words[0], words[1:])
    except (KeyError, typer.BadParameter.__bases__[0]):
        return False
    return True


def test_the_examples_of_the_reference_parse() -> None:
    lines = typed((CLI.parent / "docs" / "commands.md").read_text())
    assert {line[0] for line in lines} == set(COMMANDS)
    assert [line for line in lines if not parses(line)] == []
    assert [parses(line) for line in (["nonsense"], ["inspect", "--nonsense"], ["train", "--steps", "x"])] == [
        False
    ] * 3


LAUNCHERS = {"torchrun": get_args_parser, "accelerate launch": launch_command_parser}


def passes(launcher: str, words: list[str]) -> bool:
    """Whether a launcher hands these words on to the command line, as they are."""
    try:
        given = LAUNCHERS[launcher]().parse_args(["-m", "sortify_cli", *words])
    except SystemExit:
        return False
    return list(given.training_script_args) == words


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_every_option_can_be_given_in_several_processes(command: str, launcher: str) -> None:
    """Launchers take the beginning of one of their own options for that option, even behind the script's name."""
    names = [
        [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
        for option in typer.main.get_command(app).commands[command].params
        if not isinstance(option, typer.core.TyperArgument)
    ]
    assert [own for own in names if not any(passes(launcher, [command, name, "1"]) for name in own)] == []
    assert passes("torchrun", ["train", "--log", "none"]) is False


def foreign_names(source: str) -> list[str]:
    """What a command takes from sortify beside its public names."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sortify"
    }
    return sorted(used - set(sortify.__all__))


def test_commands_use_public_names_only() -> None:
    files = sorted(CLI.glob("*.py"))
    assert {path.stem for path in files} >= set(COMMANDS)
    assert {path.name: foreign_names(path.read_text()) for path in files} == {path.name: [] for path in files}
    assert foreign_names("sortify.load(x); sortify.capture.capture(x)") == ["capture"]


@pytest.mark.parametrize(
    ("output", "format", "expected"),
    [
        (None, "pt2", "extracted.pt2"),
        (None, "python", "extracted"),
        ("small", "pt2", "small.pt2"),
        ("there", "onnx", "there/extracted.onnx"),
        ("small.safetensors", "safetensors", "small.safetensors"),
        ("small.bin", "safetensors", "small.bin"),
        ("half-0.5", "onnx", "half-0.5.onnx"),
        (".", "pt2", "extracted.pt2"),
        ("small", "python", "small"),
        (".", "python", "."),
        ("small", "timm", "small"),
    ],
)
def test_the_name_of_what_is_extracted(
    output: str | None, format: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("there", "extracted"):
        (tmp_path / folder).mkdir()
    assert str(named(None if output is None else Path(output), format)) == expected
