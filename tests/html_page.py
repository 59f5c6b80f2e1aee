"""An HTML page taken apart, and what can be wrong with one that shall need nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "hr", "input"}
TAGS = set(
    "html head meta title link style script body header main nav section p h1 h2 h3 dl div dt dd small a strong code "
    "figure figcaption svg g line path rect circle text ul ol li i b table caption thead tbody tr th td details "
    "summary".split()
)
LINKS = set("src href xlink:href srcset data action formaction poster background ping manifest".split())
"""Attributes that lead elsewhere."""


@dataclass
class Page(HTMLParser):
    """A page taken apart.

    Attributes:
        tags: how often each element stands in it; attributes: all, as (element, name, value).
        inside: the texts of each section, by its id; rows: the cells of all table rows, by section.
        faults: elements that are not closed, or closed and not open.
    """

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    inside: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, list[list[str]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._section = "top"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> in {self._open[-3:]}")
        else:
            self._open.pop()
        if tag == "section":
            self._section = "top"

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        self.texts.setdefault(self._open[-1], []).append(data)
        self.inside.setdefault(self._section, []).append(data)
        if self._open[-1] in ("td", "th"):
            self.rows[self._section][-1][-1] += data

    def says(self, section: str) -> str:
        """The whole text of a section."""
        return " ".join(" ".join(self.inside.get(section, [])).split())


def parsed(html: str) -> Page:
    found = Page()
    found.feed(html)
    found.close()
    found.faults += [f"<{tag}> is not closed" for tag in found._open]
    return found


def outside_references(html: str) -> list[str]:
    """What a browser would fetch for a page, or follow from it: all but its own parts and an empty `data:`."""
    found = parsed(html)
    named = [f"{name}={value}" for _, name, value in found.attributes if name in LINKS]
    loose = [text for text in named if not re.fullmatch(r"href=(#[\w-]+|data:,)", text)]
    styles = [value for _, name, value in found.attributes if name in ("style", "fill", "stroke", "filter", "mask")]
    css = "\n".join([*found.texts.get("style", []), *styles])
    code = "\n".join(found.texts.get("script", []))
    refresh = [value for tag, name, value in found.attributes if tag == "meta" and value.lower() == "refresh"]
    handlers = [f"{name}={value}" for _, name, value in found.attributes if name.startswith("on")]
    return [
        *loose,
        *re.findall(r"url\([^)]*\)|@import[^;]*|image-set\([^)]*\)|src\([^)]*\)", css),
        *re.findall(r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import|open)\(|\blocation\b", code),
        *re.findall(r"(?:https?:)?//[\w.-]+\.\w+", code),
        *refresh,
        *handlers,
    ]


def faults(html: str) -> list[str]:
    """What is wrong with a page: references, foreign or open elements, ids, links, scripts other than its own."""
    found = parsed(html)
    ids = Counter(value for _, name, value in found.attributes if name == "id")
    targets = [value[1:] for _, name, value in found.attributes if name == "href" and value.startswith("#")]
    policies = [value for tag, name, value in found.attributes if (tag, name) == ("meta", "content")]
    policy = next((value for value in policies if "default-src" in value), "")
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind in ("style", "script")
        for text in found.texts.get(kind, [])
    ]
    unnamed = found.tags["svg"] - sum(tag == "svg" and name == "aria-label" for tag, name, _ in found.attributes)
    return [
        *outside_references(html),
        *found.faults,
        *sorted(set(found.tags) - TAGS),
        *(f"id {name} stands {count} times" for name, count in ids.items() if count > 1),
        *(f"no part #{target}" for target in targets if target not in ids),
        *(f"{found.tags[tag]} <{tag}>" for tag in ("script", "style", "h1") if found.tags[tag] != 1),
        *(f"digest {text} is not allowed" for text in digests if f"'sha256-{text}'" not in policy),
        *([] if "default-src 'none'" in policy else ["the policy allows more than the page"]),
        *([f"{unnamed} pictures without a label"] if unnamed else []),
    ]


def read(path: Path) -> tuple[str, Page]:
    """A page that has no faults."""
    html = path.read_text("utf-8")
    assert faults(html) == []
    return html, parsed(html)
