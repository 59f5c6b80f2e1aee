"""The example server: from load to budget, and live over HTTP."""

from __future__ import annotations

import functools
import http.client
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples import bench_server, server
from examples.demo import ResNet
from examples.server import Controller, Load, Service, running
from sortify import BudgetError, SortedModel, sortify

CONTROLLER = Controller(budgets=(1.0, 0.5, 0.25), many=3, few=1, patience=4)


def levels(waiting: list[int], start: int = 0) -> list[int]:
    """The level after each look at a queue."""
    load, found = Load(start), []
    for each in waiting:
        load = CONTROLLER.next(load, each)
        found.append(load.level)
    return found


def test_it_goes_down_at_once_and_no_further_than_the_smallest() -> None:
    assert levels([0, 3, 4, 9, 9, 9]) == [0, 0, 1, 2, 2, 2]
    assert [CONTROLLER.budget(Load(level)) for level in range(3)] == [1.0, 0.5, 0.25]


def test_it_goes_up_after_calm_looks_in_a_row_and_no_further_than_the_largest() -> None:
    assert levels([1] * 13, 2) == [2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert levels([1, 1, 1, 2, 1, 1, 1, 1], 2) == [2] * 7 + [1]  # a look that is not calm starts the count anew
    assert levels([2, 3] * 9, 1) == [1] * 18  # between few and many nothing changes


def test_a_longer_queue_never_gets_a_larger_budget() -> None:
    for load in (Load(level, calm) for level in range(3) for calm in range(4)):
        after = [CONTROLLER.next(load, waiting).level for waiting in range(10)]
        assert all(shorter <= longer for shorter, longer in pairwise(after))


@functools.cache
def model() -> SortedModel:
    torch.manual_seed(0)
    return sortify(ResNet(blocks=1, width=8), (torch.randn(2, 1, 8, 8),)).eval()


@pytest.fixture(autouse=True)
def _by_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets need no profile of this machine."""
    monkeypatch.setattr(server, "METRIC", "flops")


def asked(port: int, request: Any, path: str = "/predict") -> tuple[int, Any]:
    """The status and the content of one answer."""
    with closing(http.client.HTTPConnection("localhost", port, timeout=60)) as connection:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        connection.request("GET" if path == "/status" else "POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_requests_at_once_get_the_sub_networks_of_their_own_budgets() -> None:
    pictures = torch.rand(6, 64)
    with running(Service(model(), Controller(budgets=(1.0,)), workers=4)) as live, ThreadPoolExecutor(8) as pool:
        budgets = [1.0, 0.6, 0.4, 0.2] * 6
        wanted = [{"pictures": pictures.tolist(), "budget": budget} for budget in budgets]
        answers = list(pool.map(lambda request: asked(live.server_port, request), wanted))
    with torch.no_grad():
        chosen = {budget: model().choose(budget).subnet for budget in budgets}
        labels = {b: model()(pictures.view(6, 1, 8, 8), subnet=s).argmax(1).tolist() for b, s in chosen.items()}
    assert [status for status, _ in answers] == [200] * len(budgets)
    found = [(answer["labels"], answer["subnet"]) for _, answer in answers]
    assert found == [(labels[budget], str(chosen[budget])) for budget in budgets]
    assert len({subnet for _, subnet in found}) == 4


def test_the_budget_falls_while_requests_wait_and_rises_again() -> None:
    service = Service(model(), Controller(budgets=(1.0, 0.5), many=1, few=0, patience=3))
    request = {"pictures": [[0.5] * 64]}
    with running(service) as live, ThreadPoolExecutor(5) as pool:
        with service._working:  # nobody is served
            under_way = [pool.submit(asked, live.server_port, request) for _ in range(5)]
            until(lambda: service.status["waiting"] == 5)
            assert asked(live.server_port, b"", "/status") == (200, {"budget": 0.5, "waiting": 5})
        assert {each.result()[1]["budget"] for each in under_way} == {0.5}
        assert [asked(live.server_port, request)[1]["budget"] for _ in range(4)] == [0.5, 0.5, 1.0, 1.0]
    assert model().active == model().space.full


def until(holds: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (b"{", 400, "JSONDecodeError"),
        (b"[]", 400, "TypeError"),
        ({"images": []}, 400, "KeyError: 'pictures'"),
        ({"pictures": [[0.0] * 63]}, 400, "RuntimeError"),
        ({"pictures": [[0.0] * 64], "budget": 1e-9}, 400, "BudgetError: budget .* too small"),
        ({"pictures": [[0.0] * 64], "budget": "much"}, 400, "BudgetError: budget 'much'"),
        (b"", 404, "expected POST /predict"),
    ],
)
def test_what_is_wrong_with_a_request_comes_back_in_one_line(request_: Any, status: int, told: str) -> None:
    with running(Service(model(), CONTROLLER)) as live:
        found, answer = asked(live.server_port, request_)
        assert found == status
        assert "\n" not in answer["error"]
        assert re.match(told, answer["error"])
        assert asked(live.server_port, {"pictures": [[0.0] * 64]})[0] == 200


def test_a_budget_that_no_sub_network_meets_is_refused_at_the_start() -> None:
    with pytest.raises(BudgetError, match="too small"):
        Service(model(), Controller(budgets=(1.0, 1e-9)))


def test_the_measurement_asks_both_servers_the_same_and_counts_what_came_in_time() -> None:
    asked_for = bench_server.requests(rate=20, seconds=0.5, seed=0)
    assert asked_for == bench_server.requests(rate=20, seconds=0.5, seed=0)
    assert {request.phase for request in asked_for} == {name for name, _ in bench_server.PHASES}
    found = bench_server.served(model(), CONTROLLER, asked_for)
    assert [each.request for each in found] == asked_for
    assert all(each.latency > 0 and each.budget in CONTROLLER.budgets for each in found)
    late = [bench_server.Answered(each.request, 10.0, 1.0, 1.0) for each in found]
    assert "| 0.0 | 10000 | 10000 | 1.00 | 100.0% |" in bench_server.line("low", "full size", late, 0.5)
