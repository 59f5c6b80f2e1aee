"""Settings of a model, as its library keeps them: nested dicts and lists of plain values, and changes to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]
Settings = Mapping[str, Any]
Changes = Mapping[Path, Any]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is neither a dict nor a list, with the way to it."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from leaves(part, (*path, index))
    else:
        yield path, value


def counts(settings: Settings) -> dict[Path, int]:
    """The whole numbers above 1: sizes and how many there are of something."""
    return {path: v for path, v in leaves(settings) if isinstance(v, int) and not isinstance(v, bool) and v > 1}


def lists(value: Any, path: Path = ()) -> Iterator[tuple[Path, Sequence[Any]]]:
    """Every list, with the way to it."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from lists(part, (*path, key))
    elif isinstance(value, (list, tuple)):
        yield path, value
        for index, part in enumerate(value):
            yield from lists(part, (*path, index))


def changed(settings: Settings, changes: Changes) -> dict[str, Any]:
    """The settings with other values at these places; an inner place counts before a list that it stands in."""
    found = _changed(settings, changes, ())
    assert isinstance(found, dict)
    return found


def _changed(value: Any, changes: Changes, path: Path) -> Any:
    if path in changes:
        return changes[path]
    if isinstance(value, Mapping):
        return {key: _changed(part, changes, (*path, key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(part, changes, (*path, index)) for index, part in enumerate(value)]
    return value


def told(path: Path) -> str:
    """A place in words: `text_config.hidden_size`, `depths[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
