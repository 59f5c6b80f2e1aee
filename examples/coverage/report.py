"""What the sweep found, as pages: the coverage page of the documentation, and a list of failures for developers.

`python -m examples.coverage.report ROWS` (docs/assets/coverage/zoo.jsonl) prints the page; `--failures` a list.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.coverage import models
from examples.coverage.sweep import ROWS, read

Row = dict[str, Any]
SHARE = 0.99
HEAD = """# Coverage

Every model here was built offline with random weights, converted in a process of its own and compared, as
`examples/coverage/check.py` does it. A **pass** means: identity (both modes) and permutation errors of at most 1e-9 in
float64, or 1e-5 where the model itself casts to a smaller dtype; the smallest and one random sub-network run, give
finite numbers and equal their extraction to 1e-5 in float32, in both modes. *Share* is the part of the parameters (of
the FLOPs) that an axis reaches, of those that the example call uses; what is missing is explained in the last column,
and *unused* is the part of all parameters that the call does not use, as when a model of text and pictures gets text.

"""


EVALUATION_ONLY = """Of these models **only evaluation** was captured and compared; those above 100 M parameters were
converted on the meta device, without weights: their axes and shares are found, nothing is run.

"""


def page(rows: Mapping[str, Row], command: str, listed: int) -> str:
    """The coverage page.

    Args:
        rows: name -> row.
        command: the command that makes the page again.
        listed: how many models the list has.
    """
    done = list(rows.values())
    commits = sorted({str(row.get("commit", "")) for row in done} - {""})
    made = (
        f"Made by `{command}`, which goes on where it was stopped; so far {len(done)} of the {listed} models have run. "
    )
    only = EVALUATION_ONLY if command.endswith("zoo-full") else ""
    rows_at = f"The rows: `{ROWS / command.removeprefix('make ')}.jsonl`. "
    parts = [HEAD + only + made + rows_at + f"Commits of the library: {', '.join(commits) or '-'}.\n"]
    parts += ["## Summary\n", summary(done), "## What did not pass\n", grouped_table(failures(done))]
    for zoo, members in by(done, zoo_of).items():
        built = sorted((r for r in members if "share" in r), key=lambda r: str(r["name"]))
        parts += [f"## {zoo}\n", table(MODEL_HEAD, map(model_line, built))] if built else []
    return without_folders("\n".join(parts))


def zoo_of(row: Row) -> str:
    """The library, for transformers with the task."""
    parts = str(row["name"]).split("/")
    return " ".join(parts[:-1])


def by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows by a key, keys in order."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(sorted(found.items()))


SUMMARY_HEAD = [
    "zoo",
    "run",
    "built",
    "pass",
    "of these whole",
    f"share < {SHARE}",
    "median share",
    "conversion / capture, median",
    "95 %",
]
BASE = "transformers base"


def summary(rows: Sequence[Row]) -> str:
    """A line per zoo, for all transformers tasks that are listed by a head, and for everything."""
    zoos = by(rows, zoo_of)
    heads = [row for zoo, members in zoos.items() if zoo.startswith("transformers ") and zoo != BASE for row in members]
    together = {"transformers, all heads": heads, "all": list(rows)} if heads else {}
    return table(SUMMARY_HEAD, [summary_line(zoo, members) for zoo, members in (zoos | together).items()])


def summary_line(zoo: str, rows: Sequence[Row]) -> list[str]:
    """Counts, shares, the ratio of conversion to capture."""
    built = [row for row in rows if row["status"] != "not-built"]
    passed = [row for row in built if row["status"] == "pass"]
    whole = sum(row["captured"] == "whole" for row in passed)
    shares = [row["share"] for row in built if "share" in row]
    ratios = sorted(row["ratio"] for row in built if "ratio" in row)
    return [
        zoo,
        str(len(rows)),
        str(len(built)),
        f"{len(passed)} ({len(passed) / max(1, len(built)):.1%})",
        f"{whole} ({whole / max(1, len(built)):.1%})",
        str(sum(row["share"] < SHARE for row in passed)),
        f"{statistics.median(shares):.4f}" if shares else "-",
        f"{statistics.median(ratios):.2f}" if ratios else "-",
        f"{ratios[min(len(ratios) - 1, int(0.95 * len(ratios)))]:.2f}" if ratios else "-",
    ]


MODEL_HEAD = [
    "model",
    "status",
    "captured",
    "parameters",
    "axes",
    "blocks",
    "share",
    "unused",
    "FLOPs",
    "worst error",
    "ratio",
    "not elastic",
]


def model_line(row: Row) -> list[str]:
    """One line of the table of models."""
    errors = [float(value) for value in row.get("errors", {}).values()]
    missing = "; ".join(
        f"{share:.2%} {reason}" for reason, (share, _) in list(merged(row["frozen"]).items())[:3] if share >= 0.001
    )
    return [
        str(row["name"]).rpartition("/")[2],
        str(row["status"]),
        str(row["captured"]),
        f"{row['parameters']:,}",
        " ".join(f"{kind} {count}" for kind, count in row["axes"].items()),
        str(row["blocks"]),
        f"{row['share']:.4f}",
        f"{row['unused']:.1%}" if row.get("unused") else "",
        "-" if row["flops_share"] is None else f"{row['flops_share']:.4f}",
        f"{max(errors):.1e}" if errors else "-",
        f"{row['ratio']:.2f}",
        missing,
    ]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    escaped = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (head, ["---"] * len(head), *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


# ---------------------------------------------------------------------------------------- failures


def without_folders(text: str) -> str:
    """Files by their names: where they lie belongs to the machine that made the page; and no addresses of others."""
    text = re.sub(r"https?:\S*", "...", text)
    return re.sub(r"(?<![\w:/.])/(?:[\w.+-]+/)+([\w.+-]*)", r"\1", text)


def general(text: str) -> str:
    """A message without what differs from model to model: names, numbers, files."""
    text = re.sub(r" in [\w.]+ \(\S+\.py:\d+\)", "", text)
    text = re.sub(r"\b\w+For\w+ cannot be captured", "cannot be captured", text)
    text = re.sub(r"\((?:[^()\s]*/)([^()/\s]+\.py):\d+\)", r"(\1)", text)
    text = re.sub(r"\b(in|of|at|axis) (?:[\w]+\.)+[\w.]+", r"\1 ...", text)
    text = re.sub(r"\(\w+\.py\)", "(...)", text)
    text = re.sub(r"'[^']{1,80}'", "'...'", text)
    text = re.sub(r"\b\d+(?:\.\d+)?(?:e-?\d+)?\b", "N", text)
    return " ".join(text.split())[:220]


def failures(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows that did not pass by cause, the most frequent first."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] != "pass":
            found[f"{row['status']} in {row.get('stage')}: {row.get('error')}: {cause(row)}"].append(row)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def merged(frozen: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """General reason -> the share it costs and one full reason."""
    found: dict[str, tuple[float, str]] = {}
    for reason, share in frozen.items():
        before, full = found.get(general(reason), (0.0, reason))
        found[general(reason)] = before + share, full
    return found


def cause(row: Row) -> str:
    """The message, made general; of missed limits only which were missed."""
    if row.get("missed"):
        return "missed " + ", ".join(text.partition(":")[0] for text in row["missed"])
    message = str(row.get("message", ""))
    if row["status"] == "not-built":
        message = message.split(" | ")[0]
    return general(message)


def grouped_table(groups: Mapping[str, Sequence[Row]]) -> str:
    """Causes with counts and the names."""
    lines = [
        [cause, str(len(rows)), ", ".join(f"`{row['name']}`" for row in rows[:6]) + (" ..." if len(rows) > 6 else "")]
        for cause, rows in groups.items()
    ]
    return table(["cause", "models", "names"], lines) if lines else "Nothing.\n"


def developers(rows: Mapping[str, Row]) -> str:
    """Failures and missing shares grouped by cause, two examples each."""
    done = list(rows.values())
    counts = Counter(row["status"] for row in done)
    lines = ["# Failures of the sweep, most frequent first\n", ", ".join(f"{k} {v}" for k, v in counts.items()) + "\n"]
    lines += [summary(done)]
    groups = failures(r for r in done if r["status"] != "not-built")
    lines.append("## Fail and refused\n")
    for name, members in groups.items():
        lines.append(f"- **{len(members)}x** {name}")
        lines += [
            f"    - `{row['name']}` ({row.get('commit')}, {row.get('where', '')}): {str(row.get('message'))[:400]}"
            for row in members[:2]
        ]
    lines.append("\n## Shares below 0.99: reason, models, mean share lost, examples\n")
    lost: defaultdict[str, list[tuple[str, float, str]]] = defaultdict(list)
    for row in done:
        if "share" in row and row["share"] < SHARE:
            for reason, (share, full) in merged(row["frozen"]).items():
                if share >= 0.002:
                    lost[reason].append((row["name"], share, row.get("places", {}).get(full) or full))
    for reason, hits in sorted(lost.items(), key=lambda item: -len(item[1])):
        mean = sum(share for _, share, _ in hits) / len(hits)
        lines.append(f"- **{len(hits)}x**, mean {mean:.1%}: {reason}")
        lines += [
            f"    - `{name}` {share:.1%}: {full[:300]}" for name, share, full in sorted(hits, key=lambda h: -h[1])[:2]
        ]
    lines.append("\n## No depth found though it has 2 or more layers, or no heads (first 40)\n")
    lines.append(", ".join(f"`{r['name']}`" for r in done if r.get("blocks") == 0)[:3000])
    lines.append("\n## Slow conversions: (analysis + proof) / capture above 2\n")
    slow = sorted((r for r in done if r.get("ratio", 0) > 2), key=lambda r: -r["ratio"])
    lines += [f"- `{r['name']}` {r['ratio']}x {r['seconds']}" for r in slow[:15]]
    lines.append("\n## Slowest captures\n")
    captured = sorted((r for r in done if r.get("seconds")), key=lambda r: -r["seconds"].get("capture", 0.0))
    lines += [f"- `{r['name']}` {r['seconds']['capture']} s, {r['parameters']:,} parameters" for r in captured[:15]]
    lines.append("\n## Not built\n")
    for name, members in failures(r for r in done if r["status"] == "not-built").items():
        lines.append(f"- {len(members)}x {name}: {', '.join(r['name'] for r in members[:4])}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print a page made from the rows of a file."""
    parser = argparse.ArgumentParser(description="Print the coverage page.")
    parser.add_argument("rows", type=Path, help="JSON lines of the sweep, named after its list")
    parser.add_argument("--failures", action="store_true", help="print failures by cause instead")
    given = parser.parse_args()
    rows, zoo = read(given.rows), given.rows.stem
    print(developers(rows) if given.failures else page(rows, f"make {zoo}", len(models.names(zoo))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
