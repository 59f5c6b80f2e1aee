"""The long run of the random graph test: `make test-long`.

Cases are numbered; case n is the program drawn from seed n. Each result is appended to a JSON lines file, and what is
in it already is not run again. Faults are shrunk and printed as programs; the exit status is 1 if there is any.

    python tests/long/run_random_models.py --cases 2000 --out out/random_models.jsonl
    python tests/long/run_random_models.py --replay 117        one case, with its program and every error
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers stand beside the tests

from random_laws import Outcome, judge, shrunk
from random_models import Program, draw

FAULTS = ("crashed", "wrong", "caught")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="cases 0 to this number")
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--out", type=Path, default=Path("out/random_models.jsonl"))
    parser.add_argument("--replay", type=int, help="run this case only and print all about it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.replay is not None:
        return replay(options.replay)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {row["case"]: row for row in read(options.out)}
    with options.out.open("a") as file:
        for case in range(options.first, options.first + options.cases):
            if case not in rows:
                rows[case] = result(case)
                file.write(json.dumps(rows[case]) + "\n")
                file.flush()
                show(case, list(rows.values()))
    summary(list(rows.values()))
    return int(any(row["status"] in FAULTS for row in rows.values()))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The results so far; a line that was cut off is left out."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def result(case: int) -> dict[str, Any]:
    """Run a case; of a fault, the smallest program that shows it too."""
    program = draw(random.Random(case))
    outcome = judge(program, case)
    row = {"case": case, "steps": len(program.steps), **asdict(outcome)}
    row["worst"] = max(row.pop("errors").values(), default=0.0)
    if outcome.fault:
        small = shrunk(program, lambda other: judge(other, case).status == outcome.status)
        row |= {"program": small.to_dict(), "small_note": judge(small, case).note}
        print(f"\ncase {case} {outcome.status}: {outcome.note}\n{small}\n{row['small_note']}", flush=True)
    return row


def show(case: int, rows: list[dict[str, Any]]) -> None:
    """One line of progress, rewritten in a terminal."""
    counts = Counter(row["status"] for row in rows)
    text = f"case {case}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common())
    if sys.stdout.isatty():
        print(f"\r{text}\033[K", end="", flush=True)
    elif case % 50 == 49:
        print(text, flush=True)


def summary(rows: list[dict[str, Any]]) -> None:
    """What was found, in a few lines."""
    done = [row for row in rows if row["axes"]]
    print(f"\n{len(rows)} cases: {dict(Counter(row['status'] for row in rows))}")
    for name, digits in (("steps", 0), ("axes", 0), ("chains", 0), ("share", 3), ("seconds", 2)):
        values = sorted(row[name] for row in done)
        low, high = values[len(values) // 20], values[-1 - len(values) // 20]
        print(f"{name}: median {statistics.median(values):.{digits}f}, 5 % {low:.{digits}f}, 95 % {high:.{digits}f}")
    print(f"axes in all: {sum(row['axes'] for row in done)}")
    unfit = Counter(why.split(": ", 1)[-1][:100] for row in rows for why in row["unfit"])
    for why, count in unfit.most_common(10):
        print(f"{count} x {why}")


def replay(case: int) -> int:
    """One case with all that is known about it."""
    program: Program = draw(random.Random(case))
    print(program)
    outcome: Outcome = judge(program, case)
    for name, value in asdict(outcome).items():
        print(f"{name}: {value}")
    return int(outcome.fault)


if __name__ == "__main__":
    sys.exit(main())
