"""sortify.toml: defaults of the folder in which a command runs.

A table per command holds its long option names; top-level keys hold options that several commands share. The values
become the command line parser's defaults, so what the command line says wins.
"""

from __future__ import annotations

import difflib
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

NAME = "sortify.toml"
NOT_SETTINGS = ("help", "verbose", "version")
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    list: "text, a number, or a list of these",
}


class SettingsError(Exception):
    """sortify.toml cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Setting:
    """A key of a command's table.

    Attributes:
        key: the long option name, or the argument's name.
        parameter: the parser's name of it.
        kind: the type of its value.
    """

    key: str
    parameter: str
    kind: type


Known = Mapping[str, Mapping[str, Setting]]
"""Command -> key -> setting."""


def known_settings(commands: Mapping[str, Any]) -> Known:
    """The keys of every command, read from the commands themselves."""
    return {name: {s.key: s for s in _settings_of(command)} for name, command in commands.items()}


def _settings_of(command: Any) -> Iterable[Setting]:
    hints = get_type_hints(command.callback)
    for parameter in command.params:
        longs = [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
        key = longs[0] if longs else parameter.name
        if key not in NOT_SETTINGS:
            yield Setting(key, parameter.name, _kind(hints[parameter.name]))


def _kind(hint: Any) -> type:
    """The type behind `X | None`."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] or [hint]
    return next((get_origin(kind) or kind for kind in kinds if (get_origin(kind) or kind) in KINDS), str)


def read_settings(path: Path, known: Known) -> dict[str, dict[str, Any]]:
    """Read a settings file.

    Args:
        path: the file; where there is none, nothing is set.
        known: what may stand in it.

    Returns:
        Command -> parameter -> value.

    Raises:
        SettingsError: the file is no TOML, or a key or a value's type is wrong.
    """
    if not path.exists():
        return {}
    try:
        stored = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    shared = _shared(known)
    for key in stored:
        if key not in shared and key not in known:
            raise SettingsError(f"{path}: {_unknown(key, [*shared, *(f'[{name}]' for name in known)])}")
    return {name: _values(path, name, settings, stored) for name, settings in known.items()}


def _shared(known: Known) -> list[str]:
    """The keys that more than one command has."""
    counts = Counter(key for settings in known.values() for key in settings)
    return sorted(key for key, count in counts.items() if count > 1)


def _values(path: Path, name: str, settings: Mapping[str, Setting], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one command: its table's, else the shared ones."""
    table = stored.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: '{name}' is a command; write its settings as a table [{name}]")
    for key in table:
        if key not in settings:
            raise SettingsError(f"{path}, [{name}]: {_unknown(key, sorted(settings))}")
    top = {key: value for key, value in stored.items() if key in settings}
    found = {}
    for key, value in {**top, **table}.items():
        place = f"{path}, [{name}]" if key in table else str(path)
        found[settings[key].parameter] = _checked(place, settings[key], value)
    return found


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    meant = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown key '{key}'{meant}; known: {', '.join(known)}"


def _checked(place: str, setting: Setting, value: Any) -> Any:
    """A value of the right type; whole numbers count as numbers."""
    kind = str if setting.kind is Path else setting.kind
    if kind is list:
        parts = value if type(value) is list else [value]
        if parts and all(type(part) in (str, int, float) for part in parts):
            return [str(part) for part in parts]
        raise SettingsError(f"{place}: '{setting.key}' must be {KINDS[kind]}, got {value!r}")
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise SettingsError(f"{place}: '{setting.key}' must be {KINDS[setting.kind]}, got {value!r}")
    return value
