"""``goldfold demo``: the embedded competition from data to a scored submission."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from goldfold.config import Config
from goldfold.demo.digits import prepare_digits
from goldfold.demo.elpv import prepare_elpv
from goldfold.demo.picture import draw_result
from goldfold.demo.weights import convert_lite
from goldfold.paths import Workspace, shipped_configs
from goldfold.pipeline.report import summary
from goldfold.pipeline.run import plan_pipeline, run_pipeline, score, submit
from goldfold.progress import say, warn

PUBLISHED = (
    "Published for this data (Deitsch et al. 2019, Solar Energy 185, 75/25 split): "
    "accuracy 0.8842 (CNN, VGG-19 at 300 px), 0.8244 (SVM)."
)


def run_demo(
    workspace: Workspace, *, tiny: bool, prepare_only: bool, photographs: bool, overrides: Sequence[str]
) -> str:
    """Lay out the data, run ``configs/<name>/pipeline.yaml``, score what it submits; returns the report.

    Only here, after the pipeline has ended, are the held-back labels read, by the same code as ``goldfold score``.
    Raises BadInput when a package of the demo is missing.
    """
    started = time.monotonic()
    name = "digits" if tiny else "elpv"
    pipeline = _configs(workspace.root, name) / "pipeline.yaml"
    configs = plan_pipeline(pipeline, overrides)[1]
    seed = next(iter(configs.values())).folds.seed
    data = prepare_digits(workspace.root, seed) if tiny else prepare_elpv(workspace.root, seed)
    if not tiny:
        for variant in (0, 1):
            convert_lite(variant, workspace.root / "weights")
    if prepare_only:
        return f"prepared {data}; `goldfold run {pipeline}` runs it"

    outcome = run_pipeline(pipeline, workspace, overrides)
    submissions = dict(outcome.submissions)
    for run in outcome.runs:
        # Each member's own submission, to set beside the ensemble's.
        submissions.setdefault(run, submit(run, workspace, workspace.submission(run)))
    config: Config = next(iter(configs.values()))
    private = {made: score(path, data / "solution.csv", config, workspace) for made, path in submissions.items()}
    minutes = (time.monotonic() - started) / 60
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    made = [workspace.run(run).folder for run in outcome.runs]
    made += [workspace.ensemble(ensemble) for ensemble in outcome.ensembles]
    made += outcome.submissions.values()
    picture = workspace.submission(name).with_suffix(".png")
    try:
        made += [picture] if draw_result(outcome, private, workspace, data, picture, photographs) else []
    except Exception as error:  # an extra: the scores come without it
        warn(f"{picture.name} could not be drawn ({type(error).__name__}: {error})")
    return "\n".join(
        [
            "",
            summary(outcome, private),
            "",
            "over folds: mean ± standard deviation. OOF: all out-of-fold rows together. cross-fitted: each fold blended",
            "with weights fitted on the other folds. private: the submission against the held-back labels.",
            *([] if tiny else [PUBLISHED]),
            f"{minutes:.1f} minutes, peak memory {memory:.1f} GB",
            "",
            *[f"wrote {path}" for path in made],
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
