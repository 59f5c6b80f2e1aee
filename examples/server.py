"""A small HTTP server that answers with smaller sub-networks under load, and with larger ones when it is over.

    python -m examples.server [--port 8000] [--steps 150] [--folder sorted]
    curl localhost:8000/predict -d '{"pictures": [[0.1, -1.3, ... 64 numbers, as load_data("digits") gives them]]}'
    curl localhost:8000/predict -d '{"pictures": [...], "budget": 0.5}'
    curl localhost:8000/status

One model, one set of weights, a thread for each connection: the standard library's server. Each request runs the
sub-network of the budget of the moment, `model(x, subnet=...)`, and no request sees another one's. A request may name a
budget of its own. What the budget of the moment is, a `Controller` says from the number of requests that wait; it is a
pure function, and knows nothing of models or servers.

The model is the ResNet of `make demo`, trained on scikit-learn's digits for a short time, or a folder that
`sortify convert` and `sortify train` made, for pictures of 8 x 8. Budgets are shares of the full network's latency, by
a profile of this machine that is made at the start. `make bench-server` measures what it is good for.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from examples.demo import ResNet
from sortify import SortedModel, SortifyError, TrainConfig, Trainer, load, load_data, sortify, task_for

METRIC = "latency"
"""What budgets are about."""
PICTURES, SECONDS = 16, 15.0
"""Of a request whose latency is profiled; to profile for."""
LARGEST_BODY = 2**20
"""Bytes that a request may have."""


# -- from load to budget ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What a controller remembers: which budget is in use, and how many looks in a row found few requests waiting."""

    level: int = 0
    calm: int = 0


@dataclass(frozen=True)
class Controller:
    """Goes to the next smaller budget as soon as many requests wait, and back up once few have waited for a while.

    Attributes:
        budgets: the largest first.
        many: more requests than this wait: go down.
        few: at most so many wait: calm.
        patience: calm looks in a row before it goes up.
    """

    budgets: tuple[float, ...] = (1.0, 0.6, 0.35, 0.2)
    many: int = 3
    few: int = 1
    patience: int = 25

    def next(self, load: Load, waiting: int) -> Load:
        """What to remember after a look at the queue."""
        if waiting > self.many:
            return Load(min(load.level + 1, len(self.budgets) - 1))
        if waiting > self.few:
            return Load(load.level)
        if load.calm + 1 < self.patience:
            return Load(load.level, load.calm + 1)
        return Load(max(load.level - 1, 0))

    def budget(self, load: Load) -> float:
        """The budget in use."""
        return self.budgets[load.level]


# -- answers ----------------------------------------------------------------------------------------------------------


class Service:
    """Answers requests with sub-networks of one model.

    Args:
        model: a sorted model of pictures [B, 1, 8, 8], in evaluation mode, with a profile.
        controller: says at which budget.
        workers: how many requests run at once; the others wait.
    """

    def __init__(self, model: SortedModel, controller: Controller, workers: int = 1) -> None:
        self._model, self._controller = model, controller
        self._load, self._waiting = Load(), 0
        self._looking, self._working = threading.Lock(), threading.Semaphore(workers)
        for budget in controller.budgets:
            model.choose(budget, METRIC)  # refused now, not under load

    @property
    def status(self) -> dict[str, Any]:
        """The budget of the moment, and how many requests wait or run."""
        return {"budget": self._controller.budget(self._load), "waiting": self._waiting}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Labels for pictures.

        Args:
            request: `pictures`, rows of 64 numbers; `budget`, if it has one of its own.

        Raises:
            SortifyError: nothing fits the budget, or the pictures are no pictures.
            ValueError: the request cannot be read.
        """
        pictures = torch.tensor(request["pictures"], dtype=torch.float32).view(-1, 1, 8, 8)
        with self._turn():
            budget = request.get("budget", self._controller.budget(self._load))
            subnet = self._model.choose(budget, METRIC).subnet
            with torch.no_grad():
                labels = self._model(pictures, subnet=subnet).argmax(1).tolist()
        return {"labels": labels, "budget": budget, "subnet": str(subnet)}

    @contextmanager
    def _turn(self) -> Any:
        """Wait for a worker, and let the controller look at how many do."""
        with self._looking:
            self._load = self._controller.next(self._load, self._waiting)
            self._waiting += 1
        try:
            with self._working:
                yield
        finally:
            with self._looking:
                self._waiting -= 1


class Handler(BaseHTTPRequestHandler):
    """`POST /predict` and `GET /status`, JSON both ways; what is wrong with a request comes back in one line."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self._send(*((200, self.server.service.status) if self.path == "/status" else (404, {"error": "no such page"})))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/predict" or not 0 < length <= LARGEST_BODY:
            self.close_connection = True  # the body stays unread
            return self._send(404, {"error": f"expected POST /predict with 1 to {LARGEST_BODY} bytes"})
        try:
            self._send(200, self.server.service.answer(json.loads(self.rfile.read(length))))
        except (SortifyError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            self._send(400, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """The standard library's, with a service."""

    daemon_threads = True
    request_queue_size = 1024  # else a burst of connections is dropped, and tried again a second later

    def __init__(self, service: Service, port: int = 0) -> None:
        super().__init__(("localhost", port), Handler)
        self.service = service


@contextmanager
def running(service: Service, port: int = 0) -> Any:
    """A server in a thread of its own, for the length of a `with` block; port 0 takes a free one."""
    server = Server(service, port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- a model ----------------------------------------------------------------------------------------------------------


def trained(steps: int, width: int = 48, blocks: int = 4) -> SortedModel:
    """The ResNet of the demo with 16 sub-networks trained on digits."""
    torch.manual_seed(0)
    model = sortify(ResNet(blocks=blocks, width=width), (torch.randn(2, 1, 8, 8),))
    data = load_data("digits", batch_size=64, model=model)
    config = TrainConfig(dims=("width", "depth"), steps=steps, sampler="sandwich", lr=3e-3)
    Trainer(model, data, config, task=task_for(data, model)).run()
    return profiled(model)


def profiled(model: SortedModel, seconds: float = SECONDS) -> SortedModel:
    """The model in evaluation mode, with the latency of its sub-networks on this machine."""
    model.eval().profile(subnets=model.space.members(), seconds=seconds, batch=PICTURES)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=150, help="of the training")
    parser.add_argument("--folder", type=Path, help="a saved model, in the place of a training")
    parser.add_argument("--workers", type=int, default=1, help="requests that run at once, one core each")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = profiled(load(options.folder)) if options.folder else trained(options.steps)
    with running(Service(model, Controller(), options.workers), options.port) as server:
        print(f"localhost:{server.server_port}/predict; stop with Ctrl+C", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
