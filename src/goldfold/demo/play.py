"""``goldfold demo``: the embedded competition from data to a scored submission."""

from __future__ import annotations

import resource
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from goldfold.config import Config
from goldfold.demo.digits import prepare_digits
from goldfold.demo.elpv import prepare_elpv, prepare_few
from goldfold.demo.picture import draw_result
from goldfold.demo.weights import convert_lite
from goldfold.paths import Workspace, shipped_configs
from goldfold.pipeline.graph import plan_pipeline
from goldfold.pipeline.label_report import score_labels
from goldfold.pipeline.rounds_report import compare_rounds, rounds_text, write_rounds
from goldfold.pipeline.run import PipelineFailed, run_pipeline
from goldfold.pipeline.submitting import score, submit
from goldfold.progress import say, warn

PUBLISHED = (
    "Published for this data (Deitsch et al. 2019, Solar Energy 185, 75/25 split): "
    "accuracy 0.8842 (CNN, VGG-19 at 300 px), 0.8244 (SVM)."
)

Demo = Literal["elpv", "elpv-few", "digits"]
PREPARE: dict[Demo, Callable[[Path, int], Path]] = {
    "elpv": prepare_elpv,
    "elpv-few": prepare_few,
    "digits": prepare_digits,
}


def run_demo(
    workspace: Workspace, name: Demo, *, prepare_only: bool, photographs: bool, overrides: Sequence[str]
) -> str:
    """Lay out the data, run ``configs/<name>/pipeline.yaml``, score what it submits; returns the report.

    Only here, after the pipeline has ended, are the held-back labels read, by the same code as ``goldfold score``.
    Raises BadInput when a package of the demo is missing, and PipelineFailed when a round failed.
    """
    started = time.monotonic()
    if name == "elpv-few":
        _configs(workspace.root, "elpv")  # which it extends
    pipeline = _configs(workspace.root, name) / "pipeline.yaml"
    configs = plan_pipeline(pipeline, overrides, workspace)[1]
    seed = next(iter(configs.values())).folds.seed
    data = PREPARE[name](workspace.root, seed)
    if name != "digits":
        for variant in (0, 1):
            convert_lite(variant, workspace.root / "weights")
    if prepare_only:
        return f"prepared {data}; `goldfold run {pipeline}` runs it"

    command = shlex.join(["goldfold", "run", str(pipeline), *overrides])
    try:
        outcome = run_pipeline(pipeline, workspace, overrides)
    except PipelineFailed as failed:
        write_rounds(compare_rounds(failed.outcome, workspace), workspace, command)
        raise
    submissions = dict(outcome.submissions)
    for made in (*outcome.runs, *outcome.ensembles):
        # Each round's own submission, to set beside the last one's.
        if made not in submissions:
            submissions[made] = submit(made, workspace, workspace.submission(made))
    config: Config = next(iter(configs.values()))
    private = {name: score(path, data / "solution.csv", config, workspace) for name, path in submissions.items()}
    labels = [
        found.line(task) for task, found in score_labels(list(outcome.runs), data / "solution.csv", config, workspace)
    ]
    table = compare_rounds(outcome, workspace)
    minutes = (time.monotonic() - started) / 60
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    written = [workspace.run(run).folder for run in outcome.runs]
    written += [workspace.ensemble(ensemble) for ensemble in outcome.ensembles]
    written += [*outcome.submissions.values(), write_rounds(table, workspace, command)]
    picture = workspace.submission(name).with_suffix(".png")
    try:
        written += [picture] if draw_result(outcome, private, workspace, data, picture, photographs) else []
    except Exception as error:  # an extra: the scores come without it
        warn(f"{picture.name} could not be drawn ({type(error).__name__}: {error})")
    return "\n".join(
        [
            "",
            rounds_text(table, private),
            "private: the submission against the held-back labels.",
            *labels,
            *([PUBLISHED] if name == "elpv" else []),
            f"{minutes:.1f} minutes, peak memory {memory:.1f} GB",
            "",
            *[f"wrote {path}" for path in written],
        ]
    )


def _configs(root: Path, name: str) -> Path:
    """The demo's configurations in the project folder; copied there when Goldfold runs outside its checkout."""
    folder = root / "configs" / name
    if not (folder / "pipeline.yaml").exists():
        shipped = shipped_configs()
        say(f"copying the demo's configurations to {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted((shipped / name).glob("*.yaml")):
            shutil.copyfile(source, folder / source.name)
        if not (root / "configs" / "base.yaml").exists():
            shutil.copyfile(shipped / "base.yaml", root / "configs" / "base.yaml")
    return folder
