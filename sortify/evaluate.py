"""Scores of sub-networks on test data, and the front: those that no cheaper one equals."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sortify.data.batches import Share, preserved_chance
from sortify.data.load import Data
from sortify.errors import DataError
from sortify.files import replacing
from sortify.models.scores import FILE_NAME, Scores, fingerprint
from sortify.space.space import Subnet
from sortify.tasks.base import Task, Totals, mean_metrics
from sortify.training.parts import moved, recalibration_inputs

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

FORMAT = 1
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One sub-network's measurement.

    Attributes:
        subnet: which.
        metrics: "loss", the score by its name, and what else the task measures.
        params: parameters of the sub-network.
        flops: of one call at the example inputs' sizes.
        front: whether no other row has at most its FLOPs and at least its score, one of them truly better.
    """

    subnet: Subnet
    metrics: Mapping[str, float]
    params: int
    flops: int
    front: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Measurements of many sub-networks of one model on one set of data.

    Attributes:
        metric: name of the score among a row's metrics; larger is better.
        task: name of the task.
        data: what it was measured on.
        full: the full model's sub-network.
        full_flops: its FLOPs.
        fingerprint: of weights, data and way of measuring; rows of another one are not taken over.
        weights: digest of the weights alone.
        rows: in the order in which they were measured.
    """

    metric: str
    task: str
    data: str
    full: Subnet
    full_flops: int
    fingerprint: str
    rows: tuple[Row, ...] = ()
    weights: str = ""

    def score(self, row: Row) -> float:
        """Return a row's score."""
        return row.metrics[self.metric]

    @property
    def full_row(self) -> Row | None:
        """The full model's row, if it was measured."""
        return self.row(self.full)

    def row(self, subnet: Subnet) -> Row | None:
        """Return a sub-network's row, if it was measured."""
        return next((row for row in self.rows if row.subnet == subnet), None)

    def relative(self, row: Row) -> float:
        """Return a row's score as a share of the full model's; NaN where that is not measured, 0 or negative."""
        full = self.full_row
        return math.nan if full is None or not self.score(full) > 0 else self.score(row) / self.score(full)

    @property
    def in_percent(self) -> bool:
        """Whether scores are shown in per cent: all lie between -1 and 1, as accuracies, IoU and R^2 do."""
        return all(-1 <= self.score(row) <= 1 for row in self.rows)

    @property
    def front(self) -> tuple[Row, ...]:
        """The rows on the front, cheapest first."""
        return tuple(sorted((row for row in self.rows if row.front), key=lambda row: row.flops))

    @property
    def best(self) -> Row:
        """The row with the highest score, the cheapest of equals."""
        return max(self.rows, key=lambda row: (self.score(row), -row.flops))

    def of(self, rows: Iterable[Row]) -> Evaluation:
        """Return an evaluation like this one of other rows, with the front drawn anew."""
        return replace(self, rows=with_front(list(rows), self.score))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        rows = [
            {
                "subnet": row.subnet.to_json(),
                "metrics": dict(row.metrics),
                "relative": _plain(self.relative(row)),
                "params": row.params,
                "flops": row.flops,
                "front": row.front,
            }
            for row in self.rows
        ]
        head = {"format": FORMAT, "metric": self.metric, "task": self.task, "data": self.data}
        full = {"full": self.full.to_json(), "full_flops": self.full_flops, "fingerprint": self.fingerprint}
        full["weights"] = self.weights
        return {**head, **full, "rows": rows}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Evaluation:
        """Make an evaluation from JSON values.

        Raises:
            DataError: these are not an evaluation's.
        """
        try:
            if stored["format"] != FORMAT:
                raise DataError(f"evaluation of format {stored['format']}; this version reads {FORMAT}")
            rows = [
                Row(Subnet.from_json(row["subnet"]), row["metrics"], row["params"], row["flops"], row["front"])
                for row in stored["rows"]
            ]
            texts = [str(stored[name]) for name in ("metric", "task", "data", "fingerprint")]
            full, flops = Subnet.from_json(stored["full"]), int(stored["full_flops"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not an evaluation: {type(error).__name__} {error}") from None
        return cls(texts[0], texts[1], texts[2], full, flops, texts[3], tuple(rows), str(stored.get("weights", "")))

    def to_csv(self) -> str:
        """Return comma-separated lines, a head and one for each row.

        Columns: the sub-network in words, the fraction kept of every group, the metrics, the score relative to the full
        model's, parameters, FLOPs, their share of the full model's, and whether the row is on the front. What a row
        does not have stays empty.
        """
        groups = self.groups
        metrics = list(dict.fromkeys(name for row in self.rows for name in row.metrics))
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["subnet", *groups, *metrics, "relative", "params", "flops", "flops_share", "front"])
        for row in self.rows:
            fractions = dict(row.subnet.fractions)
            own = [*(fractions.get(name, "") for name in groups), *(row.metrics.get(name, "") for name in metrics)]
            relative = _plain(self.relative(row))
            share, front = row.flops / max(1, self.full_flops), str(row.front).lower()
            lines.writerow([str(row.subnet), *own, relative, row.params, row.flops, share, front])
        return text.getvalue()

    @property
    def groups(self) -> list[str]:
        """What the rows' sub-networks were made from: `width`, `depth`, or single axes, in the order of the rows."""
        return list(dict.fromkeys(name for row in self.rows for name, _ in row.subnet.fractions))

    def table(self) -> Table:
        """Return a table for the terminal, largest sub-network first; the front is marked with a star."""
        groups = self.groups
        caption = f"{self.task} on {self.data}; * no cheaper sub-network scores as well"
        table = Table(caption=caption, box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
        score = self.metric.replace("_", " ")
        for name in (*groups, "params", "FLOPs", "% FLOPs", score, "% of full", "loss", ""):
            table.add_column(
                name, justify="right" if name else "left", min_width=max(map(len, name.split()), default=0)
            )
        for row in sorted(self.rows, key=lambda row: -row.flops):
            fractions = dict(row.subnet.fractions)
            table.add_row(*[_fraction(fractions.get(name)) for name in groups], *self._cells(row))
        return table

    def _cells(self, row: Row) -> list[str]:
        share, relative = row.flops / max(1, self.full_flops), self.relative(row)
        return [
            quantity(row.params),
            quantity(row.flops),
            f"{share:.1%}",
            f"{self.score(row):.2%}" if self.in_percent else f"{self.score(row):.4g}",
            "-" if math.isnan(relative) else f"{relative:.1%}",
            f"{row.metrics['loss']:.4f}",
            "*" if row.front else "",
        ]


def quantity(value: float) -> str:
    """Write a large number in three figures: 999, 1.23k, 45.6M, 7.89G."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            digits = 0 if not unit else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    return f"{value:.3g}P"


def with_front(rows: Sequence[Row], score: Callable[[Row], float]) -> tuple[Row, ...]:
    """Mark the rows that no other beats: at most the FLOPs, at least the score, and one of them truly better."""
    best: dict[int, float] = {}
    for row in rows:
        best[row.flops] = max(score(row), best.get(row.flops, -math.inf))
    beaten, highest = set(), -math.inf
    for flops in sorted(best):
        if best[flops] <= highest:
            beaten.add(flops)
        highest = max(highest, best[flops])
    return tuple(replace(row, front=row.flops not in beaten and score(row) == best[row.flops]) for row in rows)


def evaluate(
    model: SortedModel,
    data: Data,
    task: Task,
    grid: Iterable[Subnet] | None = None,
    *,
    recalibrate_batches: int = 20,
    directory: str | Path | None = None,
    progress: Callable[[int, int, Row], None] | None = None,
) -> Evaluation:
    """Measure sub-networks on the test data.

    Batch-norm statistics are collected anew for each, on training batches. Afterwards the model is as before (the same
    sub-network active, the same mode), and knows its scores: `model.choose` uses them.

    In several processes (`torchrun`, `accelerate launch`) every process must make this call; each measures its share of
    the sub-networks on all the data, the first one writes, and all return the same.

    Args:
        model: a sorted model, on the device where it shall run.
        data: test batches to measure on, training batches to recalibrate with.
        task: see `sortify.task_for`.
        grid: the sub-networks; the trained ones (`model.space.landmarks()`) if not given.
        recalibrate_batches: training batches for batch-norm statistics.
        directory: where `evaluation.json` and `evaluation.csv` go, after each row; rows of the same weights and data
            that stand there already are kept and not measured again. None writes nothing.
        progress: called after each row with (rows done, rows in all, row).

    Raises:
        DataError: the data does not fit the model, or there is nothing to measure.
    """
    wanted = list(dict.fromkeys(grid if grid is not None else model.space.landmarks()))
    if not wanted:
        raise DataError("there are no sub-networks to evaluate")
    measure = _Measure(model, data, task, recalibrate_batches)
    evaluation, share = measure.empty(), measure.share()
    path = None if directory is None else Path(directory) / FILE_NAME
    done = _known(path, evaluation, share)
    kept = [subnet for subnet in wanted if subnet in done]
    told = _Told(progress, len(wanted))
    told.add(done[subnet] for subnet in kept)
    with preserved_chance():
        for rows in _rounds([subnet for subnet in wanted if subnet not in done], measure, share):
            done.update((row.subnet, row) for row in rows)
            if path is not None and share.rank == 0:
                write_evaluation(evaluation.of(done.values()), path)
            told.add(rows)
    measure.share_statistics(share)
    evaluation = evaluation.of(replace(done[subnet], subnet=subnet) for subnet in wanted)
    if path is not None and share.rank == 0:
        write_evaluation(evaluation, path)
    scores = {row.subnet: evaluation.score(row) for row in evaluation.rows}
    model.record_scores(Scores(evaluation.metric, evaluation.weights, scores))
    return evaluation


def _known(path: Path | None, evaluation: Evaluation, share: Share) -> dict[Subnet, Row]:
    """The rows of these weights and data that stand in the file already, as the first process reads them."""
    stored = read_evaluation(path) if path is not None and share.rank == 0 else None
    rows = stored.rows if stored is not None and stored.fingerprint == evaluation.fingerprint else ()
    if share.world > 1:
        sent: list[Any] = [rows]
        torch.distributed.broadcast_object_list(sent, src=0)
        rows = sent[0]
    return {row.subnet: row for row in rows}


def _rounds(missing: Sequence[Subnet], measure: _Measure, share: Share) -> Iterator[list[Row]]:
    """Measure sub-networks, in each round one in every process, and yield the rows of all.

    Several processes take the dearest first, so that those of one round cost about the same.
    """
    if share.world > 1:
        missing = sorted(missing, key=lambda subnet: -measure.flops(subnet))
    for start in range(0, len(missing), share.world):
        own = missing[start : start + share.world][share.rank : share.rank + 1]
        rows = [measure(subnet) for subnet in own]
        if share.world > 1:
            found: list[Any] = [None] * share.world
            torch.distributed.all_gather_object(found, rows)
            rows = [row for each in found for row in each]
        yield rows


class _Told:
    """Tells of rows, one after the other."""

    def __init__(self, progress: Callable[[int, int, Row], None] | None, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def add(self, rows: Iterable[Row]) -> None:
        """Tell of more rows."""
        for row in rows:
            self._count += 1
            if self._progress is not None:
                self._progress(self._count, self._total, row)


def read_evaluation(path: Path) -> Evaluation | None:
    """Read an evaluation file; None where it is damaged or of another version."""
    try:
        return Evaluation.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, DataError):
        return None


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON, and as CSV beside it, each file whole or not at all."""
    for target, text in ((path, json.dumps(evaluation.to_json(), indent=1)), (table_path(path), evaluation.to_csv())):
        with replacing(target) as draft:
            draft.write_text(text)


def table_path(path: Path) -> Path:
    """The CSV file beside an evaluation's JSON file."""
    return path.with_suffix(".csv")


class _Measure:
    """Measures one sub-network after the other on the same data."""

    def __init__(self, model: SortedModel, data: Data, task: Task, batches: int) -> None:
        self._model, self._data, self._task, self._batches = model, data, task, batches
        self._device = next((parameter.device for parameter in model.parameters()), CPU)
        self._measured: list[Subnet] = []

    def share(self) -> Share:
        """This process among those that run together; they meet here if they have not met before."""
        processes = torch.distributed
        if not processes.is_available():
            return Share()
        if not processes.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            PartialState(cpu=self._device.type == "cpu")
        return Share(processes.get_rank(), processes.get_world_size()) if processes.is_initialized() else Share()

    def flops(self, subnet: Subnet) -> int:
        """What a sub-network costs."""
        return self._model.cost(subnet).flops

    def empty(self) -> Evaluation:
        """Return an evaluation without rows."""
        task, data, full = self._task, self._data.description, self._model.space.full
        digest = fingerprint(self._model, task.name, data, str(self._batches))
        flops, weights = self._model.cost(full).flops, fingerprint(self._model)
        return Evaluation(task.metric, task.name, data, full, flops, digest, weights=weights)

    def __call__(self, subnet: Subnet) -> Row:
        """Measure one sub-network."""
        was_training = self._model.training
        self._model.eval()
        try:
            with self._model.using(subnet), torch.no_grad():
                if self._model.has_batch_statistics:
                    inputs = recalibration_inputs(self._data.train, self._task, self._batches, self._device)
                    self._model.recalibrate(inputs, self._batches)
                    self._measured.append(subnet)
                metrics = mean_metrics(self._task, self._parts())
                cost = self._model.cost(subnet)
        finally:
            self._model.train(was_training)
        return Row(subnet, metrics, cost.params, cost.flops)

    def share_statistics(self, share: Share) -> None:
        """Let every process know the batch-norm statistics that any of them measured."""
        if share.world == 1:
            return
        known, gathered = dict(self._model.statistics), list[Any]([None] * share.world)
        torch.distributed.all_gather_object(gathered, [(s, moved(known[s], CPU)) for s in self._measured])
        known.update((s, moved(found, self._device)) for each in gathered for s, found in each)
        self._model.take_statistics(known)

    def _parts(self) -> Iterator[Totals]:
        for batch in self._data.test:
            inputs, target = self._task.split(batch)
            output = self._model(*moved(inputs.args, self._device), **moved(inputs.kwargs, self._device))
            yield self._task.totals(output, moved(target, self._device)).exact()


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
