"""Damaged and hostile files by the thousand: `make fuzz`.

Cases are numbered; case n is drawn from seed n, see `fuzzing`. Each result is appended to a JSON lines file, and what
is in it already is not run again. Cases run in a process of their own: one that dies is a fault too. The exit status
is 1 if there is any.

    python tests/long/fuzz_files.py --cases 10000 --out out/fuzz_files.jsonl
    python tests/long/fuzz_files.py --replay 117 --keep FOLDER       one case, its files kept
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers stand beside the tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="cases 0 to this number")
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz_files.jsonl"))
    parser.add_argument("--replay", type=int, help="run this case only")
    parser.add_argument("--keep", type=Path, help="with --replay: where its files stay")
    parser.add_argument("--work", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay is not None:
        work([options.replay], options.keep)
        return 0
    if options.work:
        work(options.work)
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {row["case"]: row for row in read(options.out)}
    wanted = [case for case in range(options.first, options.first + options.cases) if case not in rows]
    with options.out.open("a") as file:
        for row in results(wanted):
            rows[row["case"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if row["fault"]:
                print(f"case {row['case']} {row['kind']} {row['change']}: {row['status']}: {row['note']}", flush=True)
    counts = Counter(row["status"] for row in rows.values())
    print(f"{len(rows)} cases: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    for name, unit in (("seconds", "s"), ("megabytes", "MB")):
        print(f"most {name}: {max(row[name] for row in rows.values()):.1f} {unit}")
    return int(any(row["fault"] for row in rows.values()))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The results so far; a line that was cut off is left out."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def results(cases: list[int], chunk: int = 500) -> Iterator[dict[str, Any]]:
    """Run cases in processes; after a death go on behind the case that caused it."""
    while cases:
        command = [sys.executable, __file__, "--work", *map(str, cases[:chunk])]
        done = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout or ():
                if line.startswith('{"case"'):
                    yield json.loads(line)
                    done += 1
        if process.returncode and done < len(cases[:chunk]):
            note = f"exit status {process.returncode}"
            fault = {"kind": "?", "change": "?", "status": "died", "note": note, "fault": True}
            yield {"case": cases[done], **fault, "seconds": 0.0, "megabytes": 0.0}
            done += 1
        cases = cases[done:]


def work(cases: list[int], keep: Path | None = None) -> None:
    """Run cases here and print a line of JSON for each."""
    import torch
    from fuzzing import Watch, judge, make_material

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder, "material")
        material.mkdir()
        make_material(material)
        for case in cases:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                if keep:
                    keep.mkdir(parents=True)
                outcome = judge(case, material, keep or Path(place), watch)
            print(json.dumps({"case": case, "fault": outcome.fault, **asdict(outcome)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
