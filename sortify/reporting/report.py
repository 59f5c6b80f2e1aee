"""The report of a sorted model: one HTML page that tells everything that is known, and needs nothing else."""

from __future__ import annotations

import shlex
from importlib import metadata
from pathlib import Path

from sortify.evaluate import Evaluation, read_evaluation
from sortify.files import replacing
from sortify.models.loading import load
from sortify.models.scores import FILE_NAME
from sortify.models.sorted_model import SortedModel
from sortify.reporting import model as report_model
from sortify.reporting import runs as report_runs
from sortify.reporting import scores as report_scores
from sortify.reporting.curves import History, read_history
from sortify.reporting.page import render

PAGE = "report.html"
DEFAULT = "sorted"
"""The folder that commands take where none is named."""


def write_report(
    model: SortedModel | str | Path, path: str | Path | None = None, *, evaluation: Evaluation | None = None
) -> Path:
    """Write everything that is known of a sorted model as one HTML page.

    The page holds its pictures, styles and few lines of script itself: it can be read offline, mailed and printed. What
    is not known yet (no training, no evaluation, no profile) is told with the command that gives it.

    Args:
        model: the folder of a saved one, with what training and evaluation left there; or a model itself.
        path: of the page; `report.html` in the folder by default.
        evaluation: to tell of, in place of the folder's.

    Returns:
        the path of the page.

    Raises:
        CheckpointError: there is no sorted model in the folder.
        ValueError: a model without a folder, and no path.
    """
    history, broken, folder = History(), False, ""
    if isinstance(model, SortedModel):
        if path is None:
            raise ValueError("write_report: say where to: write_report(model, 'report.html')")
    else:
        directory, model = Path(model), load(model, runnable=False)
        path = directory / PAGE if path is None else path
        folder, history = str(directory), read_history(directory)
        if evaluation is None and (directory / FILE_NAME).exists():
            evaluation = read_evaluation(directory / FILE_NAME)
            broken = evaluation is None
    with replacing(path) as draft:
        draft.write_text(_page(model, folder, history, evaluation, broken), "utf-8", "backslashreplace")
    return Path(path)


def _page(model: SortedModel, folder: str, history: History, evaluation: Evaluation | None, broken: bool) -> str:
    """The whole page."""
    where = "" if folder in ("", DEFAULT) else f" {shlex.quote(folder)}"
    evaluates, trains, measures = (
        f"sortify {words}" for words in (f"evaluate{where} --data DATA", f"train{where} --data DATA", f"profile{where}")
    )
    sections = [
        report_scores.scores(model, evaluation, broken, evaluates),
        report_runs.training(model, history, trains),
        report_scores.cost(model),
        report_runs.profile(model, measures),
        report_model.axes(model),
        report_model.depth(model),
        report_model.fixed(model),
    ]
    title = model.source or folder or "a sorted model"
    return render(title, metadata.version("sortify"), report_scores.tiles(model, evaluation), sections)
