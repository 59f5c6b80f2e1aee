"""How long it takes to switch to another sub-network, beside making a copy of it.

    python -m examples.bench_switch [--repeats 300] [--threads 1] [--page FILE]

Three models: ResNet-18, a BERT of twelve layers made from its config, and the ResNet of `make demo` after an evaluation
on digits, whose scores budgets then choose by. Medians in milliseconds of `activate` by a budget that was never asked
for before, by one that was, and by a given sub-network; of a block of `using`, in and out; and, for comparison, of
`extract`, which copies the weights. That switching copies none is checked: all tensors stay where they are, and no
other one is made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
import transformers

from examples.demo import ResNet
from sortify import SortedModel, evaluate, load_data, sortify, task_for
from sortify.models.peak import peak

GOAL = 1.0
"""Milliseconds that `activate` may take."""


def resnet18() -> SortedModel:
    """On pictures of 64 x 64."""
    return sortify(torchvision.models.resnet18(), (torch.rand(2, 3, 64, 64),)).eval()


def bert() -> SortedModel:
    """The size of BERT-base, twelve layers of width 768."""
    tokens = {"input_ids": torch.randint(0, 30000, (2, 16))}
    return sortify(transformers.BertModel(transformers.BertConfig()), tokens).eval()


def evaluated() -> SortedModel:
    """The ResNet of the demo, untrained, after an evaluation of 16 sub-networks on digits."""
    model = sortify(ResNet(), (torch.randn(2, 1, 8, 8),))
    data = load_data("digits", batch_size=256, model=model)
    levels = (0.25, 0.5, 0.75, 1.0)
    evaluate(model, data, task_for(data, model), model.space.grid(width=levels, depth=levels), recalibrate_batches=1)
    return model.eval()


MODELS: Mapping[str, Callable[[], SortedModel]] = {
    "resnet18": resnet18,
    "bert, 12 layers": bert,
    "resnet, 16 scores": evaluated,
}


@dataclass(frozen=True)
class Row:
    """One model: medians in milliseconds.

    Attributes:
        fresh: `activate` by a budget that was never asked for; known: by one that was.
        given: `activate` by a sub-network; block: `using`, in and out; copied: `extract` of the same.
    """

    model: str
    weights: int
    members: int
    fresh: float
    known: float
    given: float
    block: float
    copied: float

    @property
    def reached(self) -> bool:
        """Whether the goal is, for every way to switch."""
        return max(self.fresh, self.known, self.given, self.block) < GOAL


def row_of(name: str, model: SortedModel, repeats: int) -> Row:
    """Measure one model.

    Raises:
        SystemExit: switching moved or allocated a weight.
    """
    half = model.activate(budget=0.5)  # lists the sub-networks and their costs, once
    budgets = iter(f"{50 + 50 * place / repeats:.4f}%" for place in range(1, repeats + 1))

    def block() -> None:
        with model.using(half):
            pass

    fresh = milliseconds(lambda: model.activate(budget=next(budgets)), repeats)
    known = milliseconds(lambda: model.activate(budget=0.5), repeats)
    given = milliseconds(lambda: model.activate(half), repeats)
    check_nothing_copied(model)
    return Row(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        model.space.count,
        fresh,
        known,
        given,
        milliseconds(block, repeats),
        milliseconds(lambda: model.extract(subnet=half), 5),
    )


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median over calls."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def check_nothing_copied(model: SortedModel) -> None:
    """Leave the program if switching moves a tensor or allocates one."""
    places = [tensor.data_ptr() for tensor in model.tensors.values()]
    held = list(model.tensors.values())
    more = peak(lambda: model.activate(budget=0.5), held) - peak(lambda: None, held)
    if more or places != [tensor.data_ptr() for tensor in model.tensors.values()]:
        sys.exit(f"switching allocated {more} bytes, or moved weights")


PAGE = """# What switching costs

All sub-networks share one set of weights, so making another one the active one copies nothing: the rewritten graph
takes its sizes at each call, and cuts weights there: a prefix is a view, units that lie apart are gathered.

| Way to switch | For whom | Until |
|---|---|---|
| `model.activate(budget=0.5)` | all threads and tasks, but those inside a block | the next `activate` |
| `with model.using(budget=0.5):` | the thread or asyncio task that opened the block | the end of the block |
| `model(x, subnet=subnet)` | this one call | it returns |

A budget is looked up once and remembered, until the model is trained, evaluated or profiled again. Where scores of an
evaluation choose, each look-up first asks every weight whether it has changed since (a counter of torch's, no number is
read); only when one has are the weights read again, once. Among a million sub-networks a new budget takes longer
(`make bench-cost`). [Serving](serving.md) says what threads and servers see.

Made by `make bench-switch` (torch {torch}, {threads} thread{s}, medians of {repeats}, in milliseconds). A *new budget*
was never asked for before, the first one of all aside, which lists the sub-networks; a *known* one was. *In and out* is
an empty block of `using`. For comparison, *extract* makes the same sub-network with weights of its own. The goal is
{goal:g} ms for every way to switch; that no tensor is allocated or moved is checked in the same run.

"""
HEAD = (
    "| model | weights | sub-networks | a new budget | a known budget | a given sub-network | `using`, in and out "
    "| extract | goal |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---|"
)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    times = " | ".join(f"{value:.3f}" for value in (row.fresh, row.known, row.given, row.block))
    return (
        f"| {row.model} | {row.weights:,} | {row.members} | {times} | {row.copied:.1f} "
        f"| {'reached' if row.reached else 'missed'} |"
    )


def main() -> int:
    """Print the table; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="of each way to switch")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--page", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(HEAD, flush=True)
    rows = []
    for name, make in MODELS.items():
        rows.append(row_of(name, make(), options.repeats))
        print(line(rows[-1]), flush=True)
    if options.page:
        about = {"torch": torch.__version__, "threads": options.threads, "s": "s"[: options.threads - 1]}
        head = PAGE.format(**about, repeats=options.repeats, goal=GOAL)
        options.page.write_text(head + "\n".join([HEAD, *map(line, rows), ""]), "utf-8")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
