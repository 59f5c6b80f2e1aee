"""Convert every model of the support list and print what was found, how well it is proven, and what it costs.

    python examples/report_models.py [--out out] [--page docs/models.md] [--only resnet18 ...] [--no-timing]

Writes report_models.json and a page of the printed tables, and ends with status 1 if a limit is missed.
The models and their inputs are those of the tests (tests/zoo.py), with random weights. Time and peak memory are taken
in a fresh process each, for `sortify(model)` and for the two captures alone (torch.export in train and in eval mode
with a free batch size and text length); medians of three.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import torchvision
import transformers
from compare import max_error
from rich.console import Console
from rich.table import Table
from torch import nn
from zoo import LARGE_PHOTO, LIBRARY, Case, Inputs, call, made

from sortify import sortify

SHARE, PERMUTED, PERMUTED_SINGLE, SINGLE, TIMES = 0.99, 1e-10, 1e-5, 1e-5, 2.0
TIMED = ("resnet50", "vit_b_16", "bert_12_layers")
RUNS = 3  # of each measurement; the median counts
COMMAND = "python examples/report_models.py"


def bert_inputs() -> Inputs:
    """Two texts of 64 random tokens."""
    ids = torch.randint(0, 1000, (2, 64), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bert_12_layers() -> nn.Module:
    """BERT-base with a head for two classes."""
    return transformers.BertForSequenceClassification(transformers.BertConfig())


CASES = {case.name: case for case in LIBRARY}
# The whole model; the tests give it smaller images.
CASES["vit_b_16"] = replace(CASES["vit_b_16"], build=made(torchvision.models.vit_b_16), inputs=LARGE_PHOTO)
CASES["bert_12_layers"] = Case("bert_12_layers", made(bert_12_layers), bert_inputs, {})


@dataclass(frozen=True)
class Proof:
    """What was found in one model. Errors are relative to the largest expected value, outputs in float32.

    Attributes:
        model: Its name.
        parameters: Number of parameters.
        axes: Number of axes by kind.
        chains: Number of blocks of each chain.
        share: Share of the parameters with an elastic dimension.
        permutation: Largest output change when all axes are permuted at once, as `verify` measures it.
        identity_eval: Full sorted model against the original in eval mode.
        identity_train: The same in train mode, equal random numbers.
        full_extraction: Full sub-network against its extraction.
        half_extraction: Half of every group against its extraction.
    """

    model: str
    parameters: int
    axes: dict[str, int]
    chains: list[int]
    share: float
    permutation: float
    identity_eval: float
    identity_train: float
    full_extraction: float
    half_extraction: float

    def missed(self) -> list[str]:
        """The limits that this model does not keep."""
        permuted = PERMUTED_SINGLE if CASES[self.model].casts else PERMUTED
        errors = {
            "identity, eval": self.identity_eval,
            "identity, train": self.identity_train,
            "full extraction": self.full_extraction,
            "half extraction": self.half_extraction,
        }
        found = [f"{name} {error:.1e} > {SINGLE:.0e}" for name, error in errors.items() if not error <= SINGLE]
        found += [f"permutation {self.permutation:.1e} > {permuted:.0e}"] if not self.permutation <= permuted else []
        return found + ([f"share {self.share:.4f} < {SHARE}"] if not self.share >= SHARE else [])


@dataclass(frozen=True)
class Timing:
    """Seconds and peak memory (MiB, whole process) of `sortify(model)` and of the two captures alone.

    The processor's seconds, over all threads, tell apart what a busy machine adds to the clock's.
    """

    model: str
    captures_seconds: float
    captures_cpu: float
    captures_peak: float
    sortify_seconds: float
    sortify_cpu: float
    sortify_peak: float

    @property
    def times(self) -> tuple[float, float]:
        """How many times the captures' time and peak memory."""
        return self.sortify_seconds / self.captures_seconds, self.sortify_peak / self.captures_peak

    def missed(self) -> list[str]:
        """The limits that this model does not keep."""
        pairs = zip(("time", "peak memory"), self.times, strict=True)
        return [f"{name} {value:.2f}x > {TIMES:g}x" for name, value in pairs if not value <= TIMES]


def run(module: nn.Module, inputs: Inputs) -> Any:
    """The output, with the same random numbers each time."""
    torch.manual_seed(5)
    with torch.no_grad():
        return call(module, inputs)


def prove(case: Case) -> Proof:
    """Convert one model and compare."""
    original, inputs = case.build(), case.inputs()
    model = sortify(case.build(), inputs)
    sizes = {name: parameter.numel() for name, parameter in original.named_parameters()}
    elastic = {name for axis in model.axes.values() for name in axis.parameters}
    permuted = [row.error for row in model.verify().rows if "permut" in row.name]
    half = model.space.subnet(**dict.fromkeys(model.space.groups, 0.5))
    return Proof(
        model=case.name,
        parameters=sum(sizes.values()),
        axes=dict(Counter(axis.kind for axis in model.axes.values())),
        chains=[len(chain.blocks) for chain in model.chains.values()],
        share=sum(size for name, size in sizes.items() if name in elastic) / sum(sizes.values()),
        permutation=max(permuted, default=float("nan")),
        identity_eval=max_error(run(model.eval(), inputs), run(original.eval(), inputs)),
        full_extraction=extraction_error(model, inputs, model.space.full),
        half_extraction=extraction_error(model, inputs, half),
        identity_train=max_error(run(model.train(), inputs), run(original.train(), inputs)),
    )


def extraction_error(model: Any, inputs: Inputs, subnet: Any) -> float:
    """A sub-network in place against its extraction, in eval mode."""
    small = model.extract(subnet=subnet).eval()
    with model.using(subnet):
        return max_error(run(small, inputs), run(model, inputs))


def captures(module: nn.Module, inputs: Inputs) -> None:
    """Capture in train and in eval mode with a free batch size and, of texts, a free length, and nothing else."""

    def free(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        dims = (0,) if value.is_floating_point() else (0, 1)
        return dict.fromkeys(dims, torch.export.Dim.DYNAMIC)

    named = isinstance(inputs, dict)
    args, kwargs = ((), inputs) if named else (inputs, {})
    shapes = {key: free(value) for key, value in inputs.items()} if named else tuple(map(free, inputs))
    held = []
    for training in (True, False):
        exported = torch.export.export(module.train(training), args, kwargs, dynamic_shapes=shapes, strict=False)
        held.append(exported.module(check_guards=False))


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # not on every platform

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, what: str) -> dict[str, float]:
    """Seconds and peak memory of one piece of work; run in a process of its own."""
    work = {"captures": captures, "sortify": sortify}[what]
    work(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),))  # what torch loads late
    module, inputs = CASES[name].build(), CASES[name].inputs()
    gc.collect()
    start, start_cpu = time.perf_counter(), time.process_time()
    held = work(module, inputs)
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - start_cpu}
    del held
    return found | {"peak": peak()}


def timed(name: str) -> Timing:
    """Both measurements by turns, in fresh processes; the median of each."""
    found: dict[str, list[dict[str, float]]] = {"captures": [], "sortify": []}
    for what in ("captures", "sortify") * RUNS:
        command = [sys.executable, __file__, "--measure", name, what]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[what].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        f"{what}_{key}": statistics.median(run[key] for run in runs) for what, runs in found.items() for key in runs[0]
    }
    return Timing(model=name, **medians)


PAGE = """Every model is converted with no hint, with random weights, and then run. `elastic` is the share of the
parameters with an elastic dimension, `chains` the number of blocks of each chain of depth. Errors are relative to the
largest expected output: of all axes permuted at once (in float64; a model that casts to float32 itself in that), of the
full sorted model against the original in both modes, and of the full and the half sub-network against their
extractions."""
COSTS = """`sortify(model)` against the two captures alone (`torch.export` in training and in evaluation mode with the
same open sizes), each in a process of its own; medians of three, processor time of all threads in brackets."""
PROOF_HEAD = (
    "model",
    "parameters",
    "axes",
    "chains",
    "elastic",
    "permutation",
    "identity eval",
    "identity train",
    "full extraction",
    "half extraction",
    "limits",
)
TIMING_HEAD = ("model", "captures (cpu)", "sortify (cpu)", "times", "captures peak", "sortify peak", "times", "limits")


def proof_row(proof: Proof) -> list[str]:
    """One line of the first table."""
    errors = (
        proof.permutation,
        proof.identity_eval,
        proof.identity_train,
        proof.full_extraction,
        proof.half_extraction,
    )
    return [
        proof.model,
        f"{proof.parameters:,}",
        " ".join(f"{kind} {count}" for kind, count in proof.axes.items()),
        " ".join(map(str, proof.chains)) or "-",
        f"{proof.share:.4f}",
        *(f"{error:.1e}" for error in errors),
        "; ".join(proof.missed()) or "kept",
    ]


def timing_row(timing: Timing) -> list[str]:
    """One line of the second table."""
    seconds, memory = timing.times
    return [
        timing.model,
        f"{timing.captures_seconds:.1f} s ({timing.captures_cpu:.1f})",
        f"{timing.sortify_seconds:.1f} s ({timing.sortify_cpu:.1f})",
        f"{seconds:.2f}x",
        f"{timing.captures_peak:,.0f} MiB",
        f"{timing.sortify_peak:,.0f} MiB",
        f"{memory:.2f}x",
        "; ".join(timing.missed()) or "kept",
    ]


def show(console: Console, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on the screen."""
    table = Table(title=title)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def write(out: Path, page: Path, command: str, proofs: list[Proof], timings: list[Timing]) -> None:
    """The same as JSON and as Markdown, with the command that makes it again."""
    out.mkdir(parents=True, exist_ok=True)
    about = {"command": command, "torch": torch.__version__, "python": platform.python_version()}
    limits = {"share": SHARE, "permutation": PERMUTED, "permutation_float32": PERMUTED_SINGLE, "error": SINGLE}
    data = {
        **about,
        "threads": torch.get_num_threads(),
        "limits": limits | {"times": TIMES},
        "proofs": [asdict(proof) | {"missed": proof.missed()} for proof in proofs],
        "timings": [asdict(timing) | {"missed": timing.missed()} for timing in timings],
    }
    (out / "report_models.json").write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    parts = ["# Proof of the first models", PAGE]
    parts += [markdown(PROOF_HEAD, map(proof_row, proofs))] if proofs else []
    parts += ["## Time and memory", COSTS, markdown(TIMING_HEAD, map(timing_row, timings))] if timings else []
    parts.append(f"Made by `{command}` (torch {about['torch']}, Python {about['python']}, {data['threads']} threads).")
    page.write_text("\n\n".join(parts) + "\n", "utf-8")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert the supported models; print findings, proof and cost.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the JSON and Markdown files")
    parser.add_argument("--page", type=Path, help="write the tables here; else OUT/report_models.md")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these models only")
    parser.add_argument("--no-timing", action="store_true", help="leave time and memory out")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Prove, measure, show, write."""
    given = options()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 180)
    proofs, timings = [], []
    for name in (name for name in given.only if name in {case.name for case in LIBRARY}):
        console.print(f"converting {name}", style="dim")
        proofs.append(prove(CASES[name]))
    for name in (name for name in TIMED if name in given.only and not given.no_timing):
        console.print(f"timing {name}", style="dim")
        timings.append(timed(name))
    command = " ".join((COMMAND, *map(shlex.quote, sys.argv[1:])))
    show(console, "Findings and proof (relative errors)", PROOF_HEAD, map(proof_row, proofs))
    show(console, "Cost of sortify(model) against the two captures alone", TIMING_HEAD, map(timing_row, timings))
    page = given.page or given.out / "report_models.md"
    write(given.out, page, command, proofs, timings)
    console.print(f"wrote {given.out / 'report_models.json'} and {page}; again: {command}")
    return 1 if any(each.missed() for each in (*proofs, *timings)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
