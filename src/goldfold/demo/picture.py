"""The demo's result on one page: scores of members and ensemble, and test photographs with their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from goldfold import files
from goldfold.config import Config
from goldfold.config.schema import SubmitRound
from goldfold.demo.elpv import PUBLISHED_ACCURACY
from goldfold.paths import Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.lineage import named
from goldfold.pipeline.run import Outcome
from goldfold.progress import warn
from goldfold.records import Floats, Predictions
from goldfold.tasks import Task, encode

COLUMNS = 5
DPI = 100
GREEN, RED = "#009E73", "#D55E00"  # Okabe & Ito's palette: apart for every kind of colour vision
BLUE, ORANGE, PURPLE, GREY = "#0072B2", "#E69F00", "#CC79A7", "#666666"
TITLES = {
    "elpv": "ELPV: is a solar cell defective? Electroluminescence photographs",
    "digits": "Handwritten digits: ten classes, networks from random weights",
}
SOURCES = {
    "elpv": "Photographs: ELPV (Buerhop-Lutz et al. 2018, Deitsch et al. 2019, 2021), CC BY-NC-SA 4.0",
    "digits": "Pictures: Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), CC BY 4.0",
}
PUBLISHED = {"elpv": PUBLISHED_ACCURACY}
NAMES = {"auc": "AUC", "macro_auc": "macro AUC", "qwk": "QWK", "mcc": "MCC", "rmse": "RMSE", "mae": "MAE", "r2": "R²"}


@dataclass(frozen=True)
class Scores:
    """A row of the score panel. ``folds``: scores of the single folds; None stands for what there is not."""

    name: str
    note: str = ""
    folds: tuple[float, ...] = ()
    mean: float | None = None
    std: float | None = None
    oof: float | None = None
    cross_fitted: float | None = None
    private: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """A photograph with what was predicted and what is true."""

    id: str
    predicted: str
    true: str
    right: bool


@dataclass(frozen=True)
class Shelf:
    """A row of the contact sheet."""

    title: str
    tiles: tuple[Tile, ...]


def draw_result(
    outcome: Outcome,
    private: Mapping[str, Mapping[str, float | None]],
    workspace: Workspace,
    data: Path,
    path: Path,
    photographs: bool = True,
) -> bool:
    """Write the picture of a finished demo to ``path`` (PNG, 1400 x 800); returns whether it was written.

    ``private``: scores on the held-back labels, by run or ensemble; ``data``: the competition's folder, whose
    solution.csv is read here. Without ``photographs`` it is the scores alone, half as wide, free of the data's licence.
    Without matplotlib there is only a line that says so.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn(f'no {path.name}: the package matplotlib is not installed; pip install "goldfold[demo]"')
        return False
    config = next(iter(outcome.configs.values()))
    competition = load_competition(config.competition, workspace.root)
    figure = Figure(figsize=(14, 8), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _draw_title(figure, competition, config, photographs)
    published = PUBLISHED.get(config.competition.name, {})
    rows = score_rows(outcome, private)
    published = published if any(row.private.get("accuracy") is not None for row in rows) else {}
    _draw_scores(figure, competition, rows, bottom=0.40 if published else 0.22)
    if published:
        _draw_published(figure, rows, published)
    if photographs:
        source = [*outcome.runs, *outcome.ensembles][-1]
        positive = _positive(competition)
        shelves = _shelves(competition, _test_predictions(source, outcome, workspace), data / "solution.csv", positive)
        made = {**outcome.runs, **outcome.ensembles}[source]
        _draw_sheet(figure, competition, shelves, named(source, bool(made.get("leaky"))), positive)
    width = 14 * DPI if photographs else 7 * DPI
    files.write_atomic(path, lambda temporary: _save(figure, temporary, width))
    return True


def score_rows(outcome: Outcome, private: Mapping[str, Mapping[str, float | None]]) -> list[Scores]:
    """What the score panel shows, in the order of the rounds; an ensemble's folds are the cross-fitted ones.

    A run's weight is that in the last ensemble that it is a member of.
    """
    several = len(outcome.ensembles) > 1
    weights = {
        member["name"]: f"weight {member['weight']:.2f}" + (f" in {ensemble}" if several else "")
        for ensemble, record in outcome.ensembles.items()
        for member in record["members"]
    }
    rows = {name: _run_scores(name, cv, weights.get(name, ""), private) for name, cv in outcome.runs.items()}
    rows |= {name: _ensemble_scores(name, record, private) for name, record in outcome.ensembles.items()}
    order = [item.name for item in outcome.rounds if item.name in rows and not isinstance(item.step, SubmitRound)]
    return [rows[name] for name in dict.fromkeys([*order, *rows])]


def _run_scores(
    name: str, cv: Mapping[str, Any], note: str, private: Mapping[str, Mapping[str, float | None]]
) -> Scores:
    metric = cv["metric"]
    return Scores(
        named(name, bool(cv.get("leaky"))),
        note,
        _numbers(fold[metric] for fold in cv["folds"]),
        cv["mean"],
        cv["std"],
        cv["oof"][metric],
        private=private.get(name, {}),
    )


def _ensemble_scores(name: str, record: Mapping[str, Any], private: Mapping[str, Mapping[str, float | None]]) -> Scores:
    honest = record["cross_fitted"] or record["cv"]
    folds = _numbers(fold["score"] for fold in honest["folds"])
    return Scores(
        named(name, bool(record.get("leaky"))),
        f"ensemble ({record['method']})",
        folds,
        float(np.mean(folds)) if folds else None,
        honest["std"],
        record["cv"]["score"],
        (record["cross_fitted"] or {}).get("score"),
        private.get(name, {}),
    )


def choose_tiles(task: Task, predictions: Predictions, targets: Floats, positive: str, count: int) -> list[Shelf]:
    """The photographs of the contact sheet, ``count`` a shelf at most, for tasks with one class a row.

    binary: surest right positives, surest right negatives, surest mistakes; else: surest (one a class), least sure of
    the right ones, surest mistakes. Equally sure ones come by id. ``positive`` names the positive class.
    """
    labels = task.labels()
    answers, truth = task.class_index(predictions.values), task.class_index(targets)
    if task.name == "binary":
        probability = predictions.values[:, 0]
        sureness = np.where(answers == 1, probability, 1 - probability)
        predicted = [f"p {_share(float(value))}" for value in probability]
    else:
        sureness = predictions.values[np.arange(len(answers)), answers]
        predicted = [f"{labels[a]}: p {_share(float(s))}" for a, s in zip(answers, sureness, strict=True)]
    right = answers == truth
    # Stable sorts: by id first, so that ties do not hang on the order of rows.
    by_id = np.argsort(np.array(predictions.ids, dtype=object), kind="stable")
    order = by_id[np.argsort(-sureness[by_id], kind="stable")]

    def shelf(title: str, rows: Sequence[Any]) -> Shelf:
        tiles = [Tile(predictions.ids[r], predicted[r], f"true {labels[truth[r]]}", bool(right[r])) for r in rows]
        return Shelf(title, tuple(tiles))

    wrong = [row for row in order if not right[row]]
    mistakes = f"Mistakes, surest first ({len(wrong):,} of {len(truth):,} are wrong)"
    if task.name == "binary":
        return [
            shelf(f"Right and surest: {positive}", [row for row in order if right[row] and answers[row] == 1][:count]),
            shelf(
                f"Right and surest: not {positive}", [row for row in order if right[row] and answers[row] == 0][:count]
            ),
            shelf(mistakes, wrong[:count]),
        ]
    first = [next(row for row in order if answers[row] == each) for each in np.unique(answers)]
    rank = {row: place for place, row in enumerate(order)}
    return [
        shelf("Surest, one a class", sorted(first, key=rank.__getitem__)[:count]),
        shelf("Right but least sure", [row for row in order[::-1] if right[row]][:count]),
        shelf(mistakes, wrong[:count]),
    ]


def _shelves(competition: CompetitionData, predictions: Predictions, solution: Path, positive: str) -> list[Shelf]:
    settings = competition.settings
    known = files.read_csv(solution)
    targets = encode(competition.task, known, settings.target, solution)
    aligned = predictions.take(tuple(known[settings.id]))
    return choose_tiles(competition.task, aligned, targets, positive, COLUMNS)


def _positive(competition: CompetitionData) -> str:
    """The word for the positive class of a binary task: the target's name where the labels are 0 and 1."""
    target = competition.settings.target
    return (
        target if isinstance(target, str) and competition.task.labels() == ["0", "1"] else competition.task.classes[0]
    )


def _test_predictions(source: str, outcome: Outcome, workspace: Workspace) -> Predictions:
    if source in outcome.ensembles:
        return Predictions.read(workspace.ensemble(source) / "test.parquet", source)
    return Predictions.read(workspace.run(source).test, source)


def _draw_title(figure: Any, competition: CompetitionData, config: Config, wide: bool) -> None:
    name = competition.settings.name
    title = TITLES.get(name, name)
    counts = f"{len(competition.ids):,} labelled training images in {config.folds.n} folds, {len(competition.test_ids):,} test images"
    if wide:
        counts += " whose labels were held back until the end"
        figure.text(0.98, 0.012, SOURCES.get(name, ""), fontsize=9, color=GREY, ha="right")
    figure.text(
        0.02,
        0.955,
        title if wide else title.replace("? Electroluminescence photographs", "?"),
        fontsize=16 if wide else 14,
        fontweight="bold",
    )
    figure.text(0.02, 0.92, counts, fontsize=10.5, color=GREY)


def _draw_scores(figure: Any, competition: CompetitionData, rows: Sequence[Scores], bottom: float) -> None:
    """A group of lanes a row: folds, out-of-fold, cross-fitted, private; each lane's number stands at its right."""
    metric = competition.metrics[0]
    axes = figure.add_axes((0.125, bottom, 0.265, 0.85 - bottom))
    lanes: list[float] = []
    ticks, labels, at = [], [], 0.0
    seen: dict[str, Any] = {}

    def put(kind: str, values: Sequence[float], text: str, **style: Any) -> None:
        found = axes.plot(values, [at] * len(values), linestyle="none", zorder=3, **style)[0]
        seen.setdefault(kind, found)
        if text:
            axes.text(1.03, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5)

    for row in rows:
        top = at
        if row.folds:
            put("one fold", row.folds, "", marker="o", markersize=5, color=GREY, alpha=0.7)
        if row.mean is not None:
            bar = axes.errorbar(
                [row.mean], [at], xerr=[row.std or 0], fmt="|", color="black", markersize=13, capsize=4, zorder=4
            )
            seen.setdefault("mean ± std over folds", bar)
            spread = "" if row.std is None else f" ± {row.std:.4f}"
            axes.text(
                1.03, at, f"{row.mean:.4f}{spread}", transform=axes.get_yaxis_transform(), va="center", fontsize=9.5
            )
        at += 1
        if row.oof is not None:
            style = {"marker": "s", "markersize": 8, "markerfacecolor": "white", "markeredgewidth": 2, "color": BLUE}
            put("all out-of-fold rows", [row.oof], f"{row.oof:.4f}", **style)
            at += 1
        if row.cross_fitted is not None:
            kind = "cross-fitted: weights blind to the row's fold"
            put(kind, [row.cross_fitted], f"{row.cross_fitted:.4f}", marker="D", markersize=8, color=ORANGE)
            at += 1
        held = row.private.get(metric.name)
        if held is not None:
            put("private: the held-back test labels", [held], f"{held:.4f}", marker="*", markersize=14, color=PURPLE)
            at += 1
        ticks.append((top + at - 1) / 2)
        labels.append(f"{row.name}\n{row.note}".strip())
        lanes.append(at)
        at += 1
    axes.set_ylim(at - 1.2, -0.8)
    for line in lanes[:-1]:
        axes.axhline(line, color="#cccccc", linewidth=0.8)
    axes.set_yticks(ticks, labels, fontsize=10)
    axes.tick_params(axis="y", length=0)
    name = NAMES.get(metric.name, metric.name.replace("_", " "))
    axes.set_xlabel(f"{name} ({'higher' if metric.greater_is_better else 'lower'} is better)", fontsize=10)
    _plain_axis(axes)
    axes.legend(
        list(seen.values()),
        list(seen),
        loc="upper center",
        bbox_to_anchor=(0.42, -46 / (800 * (0.85 - bottom))),
        ncols=2 if len(seen) > 3 else 1,
        fontsize=9,
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.4,
    )


def _draw_published(figure: Any, rows: Sequence[Scores], published: Mapping[str, float]) -> None:
    axes = figure.add_axes((0.125, 0.085, 0.265, 0.15))
    ours = [(row.name, value) for row in rows if (value := row.private.get("accuracy")) is not None]
    entries = [(name, value, PURPLE, "*", 13) for name, value in ours]
    entries += [(name, value, "black", "x", 8) for name, value in published.items()]
    for place, (_, value, colour, marker, size) in enumerate(entries):
        axes.plot([value], [place], marker=marker, markersize=size, color=colour, markeredgewidth=1.5, clip_on=False)
        axes.text(1.03, place, f"{value:.4f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9.5)
    axes.set_yticks(range(len(entries)), [name for name, *_ in entries], fontsize=9.5)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("accuracy on the held-back labels; x: published (Deitsch et al. 2019)", fontsize=9.5)
    _plain_axis(axes)


def _draw_sheet(
    figure: Any, competition: CompetitionData, shelves: Sequence[Shelf], source: str, positive: str
) -> None:
    paths = dict(zip(competition.test_ids, competition.test_paths, strict=True))
    left, right, top, height = 0.52, 0.985, 0.83, 0.268
    meaning = "answer and its probability" if competition.task.name != "binary" else f"p: probability of {positive}"
    figure.text(left, top + 0.038, f"Test images as '{source}' sees them", fontsize=11, fontweight="bold")
    figure.text(left, top + 0.012, f"{meaning}; true: its label; green ✓ right, orange ✗ wrong", fontsize=9.5)
    step = (right - left) / COLUMNS
    side = step * 0.88
    for number, shelf in enumerate(shelves):
        y = top - number * height
        figure.text(left, y - 0.026, shelf.title, fontsize=10)
        if not shelf.tiles:
            figure.text(left, y - 0.08, "none", fontsize=10, color=GREY)
        for place, tile in enumerate(shelf.tiles):
            tall = side * 14 / 8
            axes = figure.add_axes((left + place * step, y - 0.036 - tall, side, tall))
            axes.imshow(_pixels(paths[tile.id], round(side * 14 * DPI)), cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            colour, sign = (GREEN, "✓") if tile.right else (RED, "✗")
            for spine in axes.spines.values():
                spine.set(edgecolor=colour, linewidth=3.5)
            axes.set_xlabel(f"{tile.predicted} {sign}\n{tile.true}", fontsize=9.5, labelpad=4)


def _pixels(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """The image in grey, as those of both demos are, at the size that it is drawn in: small ones keep their pixels."""
    with Image.open(path) as image:
        plain = image.convert("L")
    filter = Image.Resampling.NEAREST if max(plain.size) < side else Image.Resampling.LANCZOS
    return np.asarray(plain.resize((side, side), filter), dtype=np.uint8)


def _plain_axis(axes: Any) -> None:
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.08)
    axes.tick_params(axis="x", labelsize=9)
    axes.locator_params(axis="x", nbins=5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _save(figure: Any, path: Path, width: int) -> None:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :width, :3]
    # A palette that spans all colours keeps the few marks' own; the default would spend it on the greys.
    small = Image.fromarray(pixels).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, format="png", optimize=True)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values if value is not None)


def _share(value: float) -> str:
    return ">0.99" if value > 0.995 else "<0.01" if value < 0.005 else f"{value:.2f}"
