"""The zoo sweep: every model of a list in a process of its own, one line of JSON each, resumable.

`python -m examples.coverage.sweep --zoo zoo` appends to docs/assets/coverage/zoo.jsonl; with
`--page docs/coverage.md` it then writes the page. The rows are kept with the page that is made of them, so that a sweep
of hours can go on anywhere.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Row = dict[str, Any]
Check = Callable[[str], Row]
ROOT = Path(__file__).parents[2]
ROWS = Path("docs/assets/coverage")
PRELOADED = ("examples.coverage.warm",)


@dataclass(frozen=True)
class Limits:
    """What one model may take: seconds of the clock, bytes of resident memory."""

    seconds: float = 150.0
    memory: int = 6 * 2**30


@dataclass
class Job:
    """A running check."""

    name: str
    process: Any
    results: Connection
    since: float = field(default_factory=time.monotonic)
    peak: int = 0

    def poll(self, limits: Limits) -> Row | None:
        """The finished row, or None while it runs. Kills what goes over a limit."""
        row: Row | None = None
        if self.results.poll():
            try:
                row = self.results.recv()
            except EOFError:
                row = None
            self.process.join(10)
        if row is None and self.process.is_alive():
            self.peak = max(self.peak, _resident(self.process.pid))
            if self.peak > limits.memory:
                row = self._stopped("MemoryLimit", f"more than {limits.memory / 2**30:.3g} GiB")
            elif time.monotonic() - self.since > limits.seconds:
                row = self._stopped("TimeLimit", f"more than {limits.seconds:g} s")
            else:
                return None
        if row is None:
            self.process.join(10)
            row = self._row("Crashed", f"the process ended with code {self.process.exitcode} and no result")
        self.results.close()
        return row | {"peak": self.peak, "took": round(time.monotonic() - self.since, 2)}

    def _stopped(self, error: str, message: str) -> Row:
        self.process.kill()
        self.process.join(10)
        return self._row(error, message)

    def _row(self, error: str, message: str) -> Row:
        zoo = self.name.partition("/")[0]
        return {"name": self.name, "zoo": zoo, "status": "fail", "stage": "run", "error": error, "message": message}


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _end_with_parent() -> None:
    """Wait for the end of the runner, however it comes, and end with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _child(check: Check, name: str, results: Connection) -> None:
    """The child's whole life: one check, one row."""
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    results.send(check(name))
    results.close()


def run(
    names: Iterable[str], check: Check, limits: Limits, jobs: int = 2, preload: Sequence[str] = PRELOADED
) -> Iterator[Row]:
    """Rows as the checks end, at most `jobs` at once.

    Args:
        names: what to check.
        check: a function that a fresh process can import by its name.
        limits: what each process may take.
        jobs: how many processes at once.
        preload: modules that the server imports once, from which all processes are forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting, running = list(names)[::-1], []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(check, waiting[-1], sender), daemon=True)
                process.start()
                sender.close()
                running.append(Job(waiting.pop(), process, receiver))
            time.sleep(0.05)
            for job in list(running):
                row = job.poll(limits)
                if row is not None:
                    running.remove(job)
                    yield row
    finally:
        for job in running:
            job.process.kill()


def read(path: Path) -> dict[str, Row]:
    """The last row of each name; a line that was cut off when a run was stopped is left out."""
    rows: dict[str, Row] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["name"]] = row
    return rows


def tidied(path: Path, names: Sequence[str]) -> dict[str, Row]:
    """The rows, of which the file then holds the last of each listed name, in the order of the list."""
    rows = read(path)
    rows = {name: rows[name] for name in names if name in rows}
    draft = path.with_name(f".{path.name}")
    draft.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()), "utf-8")
    os.replace(draft, path)
    return rows


def left(names: Sequence[str], done: dict[str, Row], only: str | None = None, retry: Sequence[str] = ()) -> list[str]:
    """The names still to run: those without a row or with a status to try again, of those that match."""
    wanted = [name for name in names if only is None or fnmatch.fnmatch(name, only)]
    return [name for name in wanted if name not in done or done[name]["status"] in retry]


def commit() -> str:
    """The commit of the library that is checked, with a plus if files differ from it; '' outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "sortify") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def sweep(names: Sequence[str], path: Path, check: Check, limits: Limits, jobs: int = 2, **options: Any) -> list[Row]:
    """Run what is named and append each row to `path` as soon as it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console, found, passed = Console(stderr=True), [], 0
    if path.exists() and not path.read_text("utf-8").endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("checking", total=len(names))
        for row in run(names, check, limits, jobs, **options):
            row["commit"] = commit()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            found.append(row)
            passed += row["status"] == "pass"
            said = "" if row["status"] == "pass" else f"  {row.get('error')}: {str(row.get('message'))[:110]}"
            progress.console.print(f"{row['status']:9} {row['name']}{said}", highlight=False, markup=False)
            progress.update(task, advance=1, description=f"{passed} of {len(found)} pass")
    return found


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert every model of a list and keep what was found.")
    parser.add_argument("--zoo", choices=("zoo", "zoo-full", "zoo-sample"), default="zoo", help="which list")
    parser.add_argument("--out", type=Path, default=ROWS, help="folder for the JSON lines")
    parser.add_argument("--only", metavar="PATTERN", help="only names that match, such as 'timm/*'")
    parser.add_argument("--retry", metavar="STATUS", nargs="+", default=[], help="run these again: fail refused ...")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--seconds", type=float, default=150.0, help="time limit of one model")
    parser.add_argument("--memory", type=float, default=6.0, help="memory limit of one model, GiB")
    parser.add_argument("--strict", action="store_true", help="end with 1 unless every model of the list passes")
    parser.add_argument("--page", type=Path, help="write the report to this file at the end")
    return parser.parse_args()


def main() -> int:
    """Run what is left of a list, then write the page if asked."""
    from examples.coverage import models, report
    from examples.coverage.check import check, check_evaluation

    given = options()
    path = given.out / f"{given.zoo}.jsonl"
    listed = models.names(given.zoo)
    names = left(listed, read(path), given.only, given.retry)
    checked = check_evaluation if given.zoo == "zoo-full" else check
    sweep(names, path, checked, Limits(given.seconds, int(given.memory * 2**30)), given.jobs)
    rows = tidied(path, listed)
    if given.page is not None:
        given.page.write_text(report.page(rows, f"make {given.zoo}", len(listed)), "utf-8")
    passed = all(rows.get(name, {}).get("status") == "pass" for name in listed)
    return 0 if passed or not given.strict else 1


if __name__ == "__main__":
    raise SystemExit(main())
