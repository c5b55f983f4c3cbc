"""What each trick is worth: rows of settings, several seeds each, compared by paired differences.

After He et al. 2019, "Bag of Tricks for Image Classification with Convolutional Neural Networks" (CVPR), whose tables
stack one refinement on the other; here with the noise of the seeds beside each step.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, get_args

import pandas as pd

import goldfold
from goldfold import files
from goldfold.config import Config, changed_keys, load_config
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.machine import find_machine
from goldfold.metrics import score
from goldfold.paths import FoldPaths, Workspace
from goldfold.pipeline.ablation_plan import Item, Kind, Row, parse_items, plan_rows
from goldfold.pipeline.ablation_plot import draw_table
from goldfold.pipeline.ablation_report import Findings, Measure, compare, table_frame, table_markdown
from goldfold.pipeline.check import check_experiment
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.run_folder import VERSIONS, relevant
from goldfold.pipeline.stages import load_folds, train_run
from goldfold.progress import say
from goldfold.records import Predictions

__all__ = ["Findings", "Item", "Kind", "Measure", "Row", "ablate", "parse_items", "plan_rows"]

Measures = dict[tuple[str, int, int], Measure]
"""By row, seed and fold."""
RATE = "images_per_second"


def ablate(
    config_path: Path,
    overrides: Sequence[str],
    kind: Kind,
    items: str,
    seeds: int,
    folds: Sequence[int],
    name: str | None,
    workspace: Workspace,
    keep_weights: bool = False,
) -> Path:
    """Train every row with every seed and write ``ablations/<name>``; returns the path of its table.md.

    Finished runs are skipped, a killed one goes on; rows at the end of the list, seeds and folds may be added later.
    ``seeds``: how many, from train.seed on. ``folds``: only these; empty: all. Seed by seed, all rows of each, so that the
    table means something early. Raises BadInput before anything is trained where a row cannot be.
    """
    config = load_config(config_path, overrides)
    if kind not in get_args(Kind):
        raise BadInput("ablate", f"'{kind}' is no kind of ablation", f"they are {some(get_args(Kind))}")
    if seeds < 1:
        raise BadInput("--seeds", f"{seeds} seeds train nothing", "give 1 or more; 4 tell noise from gain")
    rows = plan_rows(kind, parse_items(items, config), config)
    title = name or f"{config.name}-{kind}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", title):
        raise BadInput("--name", f"'{title}' is not a folder name", "use letters, digits, dots and dashes")
    folder = workspace.root / "ablations" / title
    here = Workspace(workspace.root, runs=f"ablations/{title}/runs")
    # Rows vary nothing of the competition but its external images, so the first row's labels are everyone's.
    data = load_competition(rows[0].config.competition, workspace.root)
    all_folds = [fold for table in load_folds(config, data, workspace) for fold in table.folds]
    unknown = [fold for fold in folds if fold not in all_folds]
    if unknown or len(set(folds)) != len(folds):
        what = f"there is no fold {some(unknown)}" if unknown else f"a fold stands twice in {some(folds, 30)}"
        raise BadInput("--folds", what, f"the folds are {some(all_folds, 30)}")
    chosen = sorted(folds) or all_folds
    numbers = [config.train.seed + step for step in range(seeds)]
    command = ["goldfold", "ablate", str(config_path), *overrides, f"--{kind}", items, "--seeds", str(seeds)]
    command += ["--folds", ",".join(map(str, chosen))] if folds else []
    command += ["--name", title] if name else []
    record = _record(title, kind, shlex.join(command), config, rows, numbers, chosen, data, workspace)

    # Of several processes that train one model together, the first keeps the books.
    main = find_machine(config.train).is_main
    with _held(folder) if main else nullcontext():
        measures = _open(folder, record, here) if main else {}
        trained = [row for row in rows if row.same_as is None]
        if main:
            _check_rows(trained, numbers, chosen, measures, workspace)
            files.write_json(folder / "ablation.json", record)
        runs = [(row, seed) for seed in numbers for row in trained]
        for place, (row, seed) in enumerate(runs, 1):
            run = _run_config(row, seed)
            say(f"ablation {title}: run {place}/{len(runs)}: {row.title}, seed {seed}")
            train_run(run, here, chosen if folds else ())
            if not main:
                continue
            found = _measure(row, seed, chosen, data, here)
            if not keep_weights:
                for fold in chosen:
                    _drop_weights(here.run(str(run.name)).fold(fold))
            if any(measures.get(key) != measure for key, measure in found.items()):
                measures |= found
                _write(folder, record, rows, measures, data, title)
        if main:
            _write(folder, record, rows, measures, data, title)
    return folder / "table.md"


def _run_config(row: Row, seed: int) -> Config:
    train = row.config.train.model_copy(update={"seed": seed})
    return row.config.model_copy(update={"name": f"{row.name}-seed{seed}", "train": train})


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """No two commands may keep the books of one ablation."""
    with files.locked(folder, wait=False) as held:
        if not held:
            raise BadInput(folder, "another process is running this ablation", "wait for it, or give another --name")
        files.remove_leftovers(folder)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # only where it is empty: nothing was begun


def _check_rows(
    rows: Sequence[Row], seeds: Sequence[int], folds: Sequence[int], measures: Measures, workspace: Workspace
) -> None:
    """Whatever a row would stumble over after hours is found now. Raises BadInput naming the row."""
    for row in rows:
        if all((row.name, seed, fold) in measures for seed in seeds for fold in folds):
            continue
        say(f"checking row '{row.title}'")
        problems = check_experiment(_run_config(row, seeds[0]), workspace, decode=False)
        if problems:
            more = f"(and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise BadInput(f"row '{row.title}'", f"{problems[0]} {more}".strip())


def _measure(row: Row, seed: int, folds: Sequence[int], data: CompetitionData, workspace: Workspace) -> Measures:
    """Scores of a finished run's folds, from its out-of-fold predictions by id."""
    paths = workspace.run(f"{row.name}-seed{seed}")
    times = files.read_json(paths.record)["folds"]
    out: Measures = {}
    for fold in folds:
        where = paths.fold(fold)
        if not where.done.exists():
            raise GoldfoldError(f"{where.folder}: the fold was trained and is not finished; run the same command again")
        part = Predictions.read(where.oof, paths.name)
        if part.classes != data.task.classes:
            raise BadInput(where.oof, f"it predicts {some(part.classes)}, the classes are {some(data.task.classes)}")
        truth = data.targets_of(part.ids)
        values = {metric.name: score(metric, data.task, truth, part.values) for metric in data.metrics}
        rate = times.get(where.folder.name, {}).get("images_per_second")
        scores = {key: None if value != value else float(value) for key, value in values.items()}
        out[row.name, seed, fold] = Measure(row.name, seed, fold, scores, rate)
    return out


def _drop_weights(paths: FoldPaths) -> None:
    """Free the disk of a finished fold; DONE stays, so that it is not trained again."""
    for path in (paths.weights, paths.bundle):  # a bundle is nothing without its weights
        path.unlink(missing_ok=True)
    if paths.last.exists():
        shutil.rmtree(paths.last)


def _record(
    name: str,
    kind: Kind,
    command: str,
    config: Config,
    rows: Sequence[Row],
    seeds: Sequence[int],
    folds: Sequence[int],
    data: CompetitionData,
    workspace: Workspace,
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "command": command,
        "competition": config.competition.name,
        "metric": data.metrics[0].name,
        "greater_is_better": data.metrics[0].greater_is_better,
        "config": config.model_dump(mode="json"),
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "changes": row.changes,
                "against": None if row.against is None else rows[row.against].name,
                "same_as": row.same_as,
                "fingerprint": row.fingerprint,
            }
            for row in rows
        ],
        "seeds": list(seeds),
        "folds": list(folds),
        "inputs": {
            "train_csv": files.sha256_file(data.train_csv),
            "folds": files.sha256_file(workspace.folds(config.competition.name)),
        },
        "versions": {key: importlib.metadata.version(key) for key in VERSIONS if key != "goldfold"}
        | {"goldfold": goldfold.__version__},
    }


def _open(folder: Path, record: Mapping[str, Any], workspace: Workspace) -> Measures:
    """What the ablation measured before. Raises BadInput where it compared something else.

    A row that was not trained to its end yet may be changed or left out: only what was measured binds.
    """
    path = folder / "ablation.json"
    if not path.exists():
        return {}
    old = files.read_json(path)
    measures = _read_scores(folder / "scores.csv", workspace)
    now = {row["name"]: row["fingerprint"] for row in record["rows"]}
    before = {row["name"]: row["fingerprint"] for row in old["rows"]}
    others: list[str] = []
    if measures:
        others += [f"--{old['kind']}"] if old["kind"] != record["kind"] else []
        others += [
            f"another file behind {key}" for key, value in old["inputs"].items() if record["inputs"][key] != value
        ]
        done = list(dict.fromkeys(row for row, _, _ in measures))
        changed = [name for name in done if now.get(name) != before.get(name)]
        keys = changed_keys(relevant(old["config"]), relevant(record["config"]))
        others += [f"other settings ({some(keys)})"] if changed and keys else []
        others += [f"another row '{name}'" for name in changed] if not keys else []
        for what, place in (("seed", 1), ("fold", 2)):
            lost = sorted({key[place] for key in measures} - set(record[f"{what}s"]))
            others += [f"{what} {some(lost)} too"] if lost else []
    if others:
        raise BadInput(
            folder,
            f"this ablation was started with {some(others)}",
            "give the new one another --name, or delete the folder",
        )
    return measures


def _read_scores(path: Path, workspace: Workspace) -> Measures:
    """Measures of folds that are finished still."""
    if not path.exists():
        return {}
    out: Measures = {}
    frame = files.read_csv(path)
    metrics = [key for key in frame.columns if key not in ("row", "seed", "fold", RATE)]
    for values in frame.to_dict("records"):
        row, seed, fold = str(values["row"]), int(values["seed"]), int(values["fold"])
        scores = {key: float(values[key]) if values[key] else None for key in metrics}
        rate = float(values[RATE]) if values[RATE] else None
        if workspace.run(f"{row}-seed{seed}").fold(fold).done.exists():
            out[row, seed, fold] = Measure(row, seed, fold, scores, rate)
    return out


def _write(
    folder: Path,
    record: Mapping[str, Any],
    rows: Sequence[Row],
    measures: Measures,
    data: CompetitionData,
    title: str,
) -> None:
    found = [
        {"row": m.row, "seed": m.seed, "fold": m.fold, **m.scores, RATE: m.images_per_second} for m in measures.values()
    ]
    columns = ["row", "seed", "fold", *(metric.name for metric in data.metrics), RATE]
    files.write_csv(folder / "scores.csv", pd.DataFrame(found, columns=columns))
    findings = compare(record["kind"], rows, list(measures.values()), data.metrics, record["folds"], record["seeds"])
    files.write_csv(folder / "table.csv", table_frame(findings))
    text = table_markdown(findings, title, record["command"], record["competition"], _notes(rows))
    files.write_text(folder / "table.md", text)
    draw_table(findings, title, folder / "plot.png")


def _notes(rows: Sequence[Row]) -> list[str]:
    chosen = [row.title for row in rows if row.config.train.keep == "best" or row.config.train.soup.method == "greedy"]
    return (
        [f"These rows choose epochs on the validation fold, so their scores are optimistic: {some(chosen, 20)}."]
        if chosen
        else []
    )
