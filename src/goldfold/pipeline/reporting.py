"""What runs and ensembles report to W&B: a run a fold, and one for the whole with its scores, files and mistakes.

All of it lies on disk already; W&B gets a copy, or does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from goldfold import files
from goldfold.config import Config
from goldfold.images import decode
from goldfold.paths import RunPaths, Workspace
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.lineage import optimistic
from goldfold.progress import warn
from goldfold.records import Predictions
from goldfold.tracking import Sweep, WandbRun, import_wandb, worst_mistakes

Pixels = npt.NDArray[np.uint8]

RECORD = "wandb.json"
SIDE = 256
"""Pixels: the longer side of a reported image."""


class Reporter:
    """Reports one run (``config``, in ``paths``). After one run that could not go online, the next ones do not try."""

    def __init__(
        self, config: Config, paths: RunPaths, root: Path, is_main: bool = True, sweep: Sweep | None = None
    ) -> None:
        """Raises BadInput when W&B is asked for and not installed. Of several processes only the main one reports."""
        self.settings = config.tracking.model_copy(update={"wandb": config.tracking.wandb and is_main})
        if self.settings.wandb:
            import_wandb()
        self._config, self._paths, self._root, self._sweep = config, paths, root, sweep

    @contextmanager
    def fold(self, folder: str) -> Iterator[WandbRun]:
        """The W&B run of a fold's training; it ends as failed when the training does."""
        tracker = self._start(folder, _stage(self._config))
        failed = True
        try:
            tracker.summarise(self._marks())
            yield tracker
            failed = False
        finally:
            self._end(tracker, failed)

    def whole(self, data: CompetitionData, cv: Mapping[str, Any]) -> None:
        """The run's scores, once: what is reported already is not reported again."""
        if not self.settings.wandb or _is_reported(self._paths.folder, self._paths.cv):
            return
        tracker = self._start("summary", "summary", self._sweep)
        tracker.summarise(run_scores(cv))
        tracker.show("mistakes", _mistakes(self._config, data, self._paths.oof, self.settings.mistakes))
        tracker.keep_files(str(self._config.name), "run", self._paths.folder)
        if self._end(tracker):
            _remember(self._paths.folder, self._paths.cv)

    def _start(self, part: str, stage: str, sweep: Sweep | None = None) -> WandbRun:
        config, record = self._config, {}
        if self.settings.wandb:
            record = files.read_json(self._paths.record)
        marks = self._marks()
        return WandbRun(
            self.settings,
            project=config.competition.name,
            run=str(config.name),
            fold=part,
            job_type=stage,
            config={
                **config.model_dump(mode="json"),
                "goldfold": {
                    key: record.get(key) for key in ("fingerprint", "inputs", "git", "created", "versions", "machine")
                },
            },
            folder=self._root,
            # A resumed fold goes on with its W&B run; a run that is trained anew gets others.
            id=_identity(str(config.name), record.get("created"), part),
            tags=[name for name, holds in marks.items() if holds],
            sweep=sweep,
        )

    def _end(self, tracker: WandbRun, failed: bool = False) -> bool:
        whole = tracker.finish(failed)
        if tracker.fell_back:
            self.settings = self.settings.model_copy(update={"mode": "offline"})
        return whole

    def _marks(self) -> dict[str, bool]:
        leaky = self.settings.wandb and bool(files.read_json(self._paths.record)["leaky"])
        return {"leaky": leaky, "optimistic": optimistic(self._config)}


def report_ensemble(
    record: Mapping[str, Any],
    members: Mapping[str, Config],
    data: CompetitionData,
    workspace: Workspace,
) -> None:
    """An ensemble's scores, weights, files and mistakes, once. ``members``: the runs' configurations by name.

    The first member that was tracked says where to; without one, nothing is reported. Raises BadInput when W&B is not
    installed.
    """
    config = next((config for config in members.values() if config.tracking.wandb), None)
    name, folder = str(record["name"]), workspace.ensemble(str(record["name"]))
    made = folder / "ensemble.json"
    if config is None or _is_reported(folder, made):
        return
    runs = {run: files.read_json(workspace.run(run).record) for run in members}
    tracker = WandbRun(
        config.tracking,
        project=config.competition.name,
        run=name,
        fold="ensemble",
        job_type="ensemble",
        config={
            "competition": config.competition.model_dump(mode="json"),
            "ensemble": {key: record[key] for key in ("method", "bags", "calibration", "decisions")},
            "members": {run: {key: own[key] for key in ("fingerprint", "inputs", "git")} for run, own in runs.items()},
            "goldfold": {"fingerprint": record["fingerprint"]},
        },
        folder=workspace.root,
        id=_identity(name, record["fingerprint"], *(own["created"] for own in runs.values())),
        tags=[mark for mark in ("leaky", "optimistic") if record[mark]],
    )
    tracker.summarise(ensemble_scores(record))
    tracker.show("mistakes", _mistakes(config, data, folder / "oof.parquet", config.tracking.mistakes))
    tracker.keep_files(name, "ensemble", folder)
    if tracker.finish():
        _remember(folder, made)


def run_scores(cv: Mapping[str, Any]) -> dict[str, Any]:
    """cv.json as W&B's summary. ``objective``: the mean over folds of the first metric, signed so that more is better."""
    return {
        "objective": _signed(cv["mean"], cv["greater_is_better"]),
        "cv/mean": cv["mean"],
        "cv/std": cv["std"],
        **{f"oof/{name}": value for name, value in cv["oof"].items()},
        **{f"folds/{fold['fold']}": fold[cv["metric"]] for fold in cv["folds"]},
        "leaky": cv["leaky"],
        "optimistic": cv["optimistic"],
    }


def ensemble_scores(record: Mapping[str, Any]) -> dict[str, Any]:
    """ensemble.json as W&B's summary. ``objective``: the cross-fitted score where there is one, more is better."""
    plain, fitted = record["cv"], record["cross_fitted"]
    best = plain if fitted is None else fitted
    scores = {
        "objective": _signed(best["score"], record["greater_is_better"]),
        "cv/score": plain["score"],
        "cross_fitted/score": None if fitted is None else fitted["score"],
        "optimism": record["optimism"],
        "leaky": record["leaky"],
        "optimistic": record["optimistic"],
    }
    for name, value in best["extra"].items():
        scores[f"{'cv' if fitted is None else 'cross_fitted'}/{name}"] = value
    for member in record["members"]:
        for key in ("weight", "score", "marginal_gain"):
            scores[f"members/{member['name']}/{key}"] = member[key]
    return scores


def _signed(value: float | None, greater_is_better: bool) -> float | None:
    return value if value is None or greater_is_better else -value


def _stage(config: Config) -> str:
    if config.teacher.pseudo.labels != "none":
        return "pseudo_label"
    return "distill" if config.teacher.runs else "train"


def _mistakes(
    config: Config, data: CompetitionData, oof: Path, most: int
) -> Callable[[], Sequence[tuple[Pixels, str]]]:
    def draw() -> list[tuple[Pixels, str]]:
        if not most:
            return []
        found = Predictions.read(oof, str(config.name))
        paths = dict(zip(data.ids, data.train_paths, strict=True))
        worst = worst_mistakes(data.task, found.ids, data.targets_of(found.ids), found.values, most)
        return [(_small(decode(paths[row.id], 3, config.input.range)), f"{row.id}: {row.caption}") for row in worst]

    return draw


def _small(pixels: Pixels) -> Pixels:
    """(H, W, 3), at most ``SIDE`` pixels long."""
    height, width = pixels.shape[:2]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return pixels
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _identity(*parts: object) -> str:
    return files.fingerprint([str(part) for part in parts])[:16]


def _is_reported(folder: Path, scores: Path) -> bool:
    path = folder / RECORD
    return path.exists() and files.read_json(path)["scores_sha256"] == files.sha256_file(scores)


def _remember(folder: Path, scores: Path) -> None:
    try:
        files.write_json(folder / RECORD, {"scores_sha256": files.sha256_file(scores)})
    except OSError as error:
        warn(f"{folder / RECORD}: cannot be written ({error.strerror}); the scores will be reported again")
