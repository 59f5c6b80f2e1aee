"""What lowering the budget under load is good for: the server of examples/server.py at full size, and adaptive.

    python -m examples.bench_server [--seconds 8] [--rounds 2] [--steps 150] [--page FILE]

The server runs in this process, and so do its clients, over HTTP. Three phases of load, low, high and low again:
requests of 16 digits arrive at random times (a Poisson process), at shares of the rate at which one client that waits
for each answer is served by the full network; 1.0 is about all that it can do. Requests arrive whether or not earlier
ones were answered, and latency counts from the time at which a request was to arrive. Both servers get the same
requests at the same times, one server after the other, in turns for as many rounds as are asked for.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import local

import numpy as np
import torch

from examples.server import PICTURES, Controller, Server, Service, running, trained
from sortify import SortedModel, load_data

PHASES = (("low", 0.4), ("high", 1.5), ("low again", 0.4))
"""Name -> rate of requests, as a share of what the full network can do."""
CONTROLLERS = {"full size": Controller(budgets=(1.0,)), "adaptive": Controller()}
DIGITS = 360
"""That no training saw."""
CLIENTS = 256
"""Requests that can be under way at once."""


@dataclass(frozen=True)
class Request:
    """What is asked for, in which phase, when, and when the phase ends: seconds from the start."""

    phase: str
    time: float
    end: float
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """A request with its latency in seconds, the budget that it got, and the share of right labels."""

    request: Request
    latency: float
    budget: float
    right: float


def requests(rate: float, seconds: float, seed: int) -> list[Request]:
    """All phases, one after the other.

    Args:
        rate: requests per second at a share of 1; seconds: of each phase.
    """
    chance, found = np.random.default_rng(seed), list[Request]()
    for place, (name, share) in enumerate(PHASES):
        now, end = place * seconds, (place + 1) * seconds
        while (now := now + float(chance.exponential(1 / (rate * share)))) < end:
            found.append(Request(name, now, end, tuple(map(int, chance.integers(0, DIGITS, PICTURES)))))
    return found


class Client:
    """Asks a server about digits; a connection for each thread."""

    def __init__(self, server: Server) -> None:
        self._port, self._own, self._open = server.server_port, local(), list[http.client.HTTPConnection]()
        pictures, labels = (torch.cat(part) for part in zip(*load_data("digits").test, strict=True))
        self._pictures, self._labels = pictures.flatten(1), labels

    def ask(self, rows: Sequence[int]) -> tuple[float, float]:
        """The budget of the answer, and the share of right labels."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("localhost", self._port, timeout=300)
            self._open.append(self._own.connection)
        body = json.dumps({"pictures": self._pictures[list(rows)].tolist()})
        self._own.connection.request("POST", "/predict", body)
        response = self._own.connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {answer}")
        return answer["budget"], float((torch.tensor(answer["labels"]) == self._labels[list(rows)]).double().mean())

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open:
            connection.close()


def full_rate(model: SortedModel, count: int = 60) -> float:
    """Requests per second of the full network, asked for one after the other."""
    with running(Service(model, CONTROLLERS["full size"])) as server, closing(Client(server)) as client:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            client.ask(range(PICTURES))
            times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times)


def served(model: SortedModel, controller: Controller, asked: Sequence[Request]) -> list[Answered]:
    """Let requests arrive at their times, and wait for all answers."""
    service = Service(model, controller)
    with running(service) as server, closing(Client(server)) as client, ThreadPoolExecutor(CLIENTS) as pool:
        start = time.perf_counter()

        def answered(request: Request) -> Answered:
            budget, right = client.ask(request.rows)
            return Answered(request, time.perf_counter() - start - request.time, budget, right)

        under_way = []
        for request in asked:
            time.sleep(max(0.0, start + request.time - time.perf_counter()))
            under_way.append(pool.submit(answered, request))
        return [each.result() for each in under_way]


HEAD = (
    "| load | server | requests asked for, 1/s | answered, 1/s | median latency, ms | p95, ms | mean budget | right |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


def line(name: str, server: str, found: Sequence[Answered], seconds: float) -> str:
    """A row of the table, in Markdown: one phase of one server, over all rounds.

    Args:
        seconds: that requests arrived for, rounds together; answers that came later are not among those per second.
    """
    latencies = sorted(1e3 * each.latency for each in found)
    in_time = sum(each.request.time + each.latency <= each.request.end for each in found)
    middle, high = statistics.median(latencies), latencies[int(0.95 * (len(latencies) - 1))]
    budget, right = (statistics.mean(values) for values in zip(*((e.budget, e.right) for e in found), strict=True))
    return (
        f"| {name} | {server} | {len(found) / seconds:.1f} | {in_time / seconds:.1f} | {middle:.0f} | {high:.0f} "
        f"| {budget:.2f} | {right:.1%} |"
    )


PAGE = """# Serving

One model serves any number of threads and asyncio tasks, each at a sub-network of its own, from one set of weights.

```python
model.activate(budget=0.5)  # for all that have none of their own
with model.using(budget=0.25):  # for this thread, or this task
    model(x)
model(x, subnet=model.choose(0.75).subnet)  # for this call
```

- **A block belongs to its thread or task.** `using` sets a context variable. A task may wait (`await`) inside its
  block; others that run meanwhile keep their own sub-networks. Blocks nest, of one model and of several.
- **Tasks begin with the block in which they are made**, and keep it when the block ends; so does what
  `asyncio.to_thread` runs. **Plain threads do not**, nor do executors (`ThreadPoolExecutor`, `loop.run_in_executor`):
  they run what is active for all. To take a block along, hand its context over,
  `thread = Thread(target=contextvars.copy_context().run, args=(work,))`, or name the sub-network in the call.
- **`activate` inside a block** changes the block, and ends with it; outside it is for all.
- **Generators** that yield inside a block leave it open for whoever takes from them, in Python always. Name the
  sub-network in the call there.
- **`subnet=` is a sub-network**, not a budget: `model.choose(budget).subnet` is one, and remembered. Where the original
  has an argument called `subnet`, it is the original's, and blocks are the way.
- **A call looks once** at what is active, at the statistics of batch-norms and at the mode. Others may activate,
  recalibrate or forget statistics meanwhile: the call has the one or the other, never a mixture.
- **Training** belongs to one thread: the mode (`train()`, `eval()`), gradients and weights are the model's, for all
  threads. Serve a copy (`copy.deepcopy(model)`) while the model trains. The backward pass needs no block. What
  `gradient_checkpointing_enable()` computes again is the sub-network of the forward pass, in whatever thread; of a
  checkpoint of your own it is what you name: `checkpoint(model, x, subnet=subnet, use_reentrant=False)`.
- **Copies** (`copy.deepcopy`) begin with the sub-network that is active where they are made.

[What switching costs](switching.md) is a page of its own.

## A server that answers smaller under load

`python -m examples.server` is a small HTTP server of the standard library. A pure function looks at how many requests
wait: more than {many} and the next ones get the next smaller of the budgets {budgets} (shares of the full network's
latency); at most {few} for {patience} requests in a row, and they get the next larger one.

Made by `make bench-server` (torch {torch}, one thread for the model, {rounds} rounds of {seconds:g} s for each phase;
the clients run in the same process). A ResNet of {weights:,} weights, 16 sub-networks trained on digits for {steps}
steps; requests of {pictures} digits at random times, at {shares} times the {rate:.1f} requests/s that the full network
answers to one client that waits. Both servers get the same requests at the same times. Latency counts from the time at
which a request was to arrive to its answer; *right* is the share of digits told right; no training saw them.

"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150, help="of the training")
    parser.add_argument("--page", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(options.steps)
    rate, found = full_rate(model), {name: list[Answered]() for name in CONTROLLERS}
    for number in range(options.rounds):
        asked = requests(rate, options.seconds, number)
        for name in list(CONTROLLERS)[:: 1 if number % 2 else -1]:
            found[name] += served(model, CONTROLLERS[name], asked)
    text = [HEAD]
    for phase, _ in PHASES:
        for name, answers in found.items():
            own = [each for each in answers if each.request.phase == phase]
            text.append(line(phase, name, own, options.rounds * options.seconds))
    print("\n".join(text), flush=True)
    if options.page:
        adaptive = CONTROLLERS["adaptive"]
        head = PAGE.format(
            **{key: getattr(adaptive, key) for key in ("many", "few", "patience")},
            budgets=", ".join(f"{budget:g}" for budget in adaptive.budgets),
            torch=torch.__version__,
            weights=sum(parameter.numel() for parameter in model.parameters()),
            shares=", ".join(f"{share:g}" for _, share in PHASES),
            pictures=PICTURES,
            rate=rate,
            **{key: getattr(options, key) for key in ("rounds", "seconds", "steps")},
        )
        options.page.write_text(head + "\n".join([*text, ""]), "utf-8")


if __name__ == "__main__":
    main()
