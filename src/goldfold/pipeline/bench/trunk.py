"""A cached trunk against the plain loop: small real trainings of both, with the score of each."""

from __future__ import annotations

import torch

from goldfold import files
from goldfold.config import Config
from goldfold.metrics import score
from goldfold.paths import Workspace
from goldfold.pipeline.bench.plan import Plan, Subject, changed, renamed
from goldfold.pipeline.bench.rows import CannotMeasure, Measurement, Sample, rates
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.paired import paired, verdict
from goldfold.pipeline.stages import train_run
from goldfold.progress import say
from goldfold.records import Predictions

MOST_SEEDS = 3
STAGES = -2


def measure_trunk(subject: Subject, plan: Plan) -> Measurement:
    """The first fold trained with frozen stages from stored features, and whole from pixels, seed by seed in turns."""
    workspace = Workspace(subject.workspace.root, runs=str(plan.scratch("trunk-runs").resolve()))
    cached, plain = both(subject.config, plan)
    data = load_competition(cached.competition, workspace.root)
    metric = data.metrics[0]
    samples: list[Sample] = []
    for seed in range(min(plan.repeats, MOST_SEEDS)):
        found = {}
        for kind, config in (("cached", cached), ("plain", plain))[:: -1 if seed % 2 else 1]:
            say(f"bench: {kind} training, seed {seed}")
            found[kind] = _train(renamed(config, f"{kind}-seed{seed}"), seed, workspace, data)
        ours, base = found["cached"], found["plain"]
        samples.append(
            {
                "amount": ours["rate"],
                "seconds": 1.0,
                "base_amount": base["rate"],
                "base_seconds": 1.0,
                "wall_seconds": ours["seconds"],
                "base_wall_seconds": base["seconds"],
                "score": ours["score"],
                "base_score": base["score"],
            }
        )
    gains = paired([each["score"] - each["base_score"] for each in samples])
    word = verdict(gains, metric.greater_is_better)
    wall = [each["base_wall_seconds"] / each["wall_seconds"] for each in samples]
    interval = "" if gains.low is None else f" (95 % {gains.low:+.4f} to {gains.high:+.4f})"
    notes = [
        f"{metric.name}, cached minus plain: {gains.mean:+.4f}{interval}, {word}. "
        f"Of whole folds, with predictions and, the first time, the trunk's run: {', '.join(f'{each:.2f}' for each in wall)} times as fast."
    ]
    if not cached.model.pretrained:
        notes.append("The weights are random, so the scores say nothing of a frozen trunk's worth.")
    details = {
        "images": subject.what,
        "backbone": cached.model.backbone,
        "size": cached.input.size,
        "stages": cached.model.freeze.stages,
        "views": cached.model.freeze.cache_views,
        "epochs": cached.train.epochs,
        "threads": torch.get_num_threads(),
        **rates(samples),
    }
    spoilt = f"the score is worse beyond noise: {gains.mean:+.4f}" if word == "worse" else None
    return Measurement(tuple(samples), details, tuple(notes), spoilt)


def both(config: Config, plan: Plan) -> tuple[Config, Config]:
    """The experiment with a cached trunk, and without: nothing frozen, each batch augmented with the same kind of views."""
    freeze = config.model.freeze
    if not freeze.cache:
        if config.augment.erase.prob or config.mix.mixup or config.mix.cutmix or config.train.phases:
            raise CannotMeasure("CONFIG mixes, erases or has phases, which stored features cannot honour")
        config = changed(
            config,
            model={"freeze": {**freeze.model_dump(), "stages": freeze.stages or STAGES, "cache": True}},
            augment={"preset": "none", "train": None, "add": []},
        )
    store = str(plan.folder.resolve() / "trunk-store")
    training = {"seeds": [], "epochs": 1 if plan.quick else min(config.train.epochs, 6)}
    cached = changed(config, train=training, input={"cache": True, "cache_dir": store})
    views = cached.model.freeze.cache_views
    # K views are drawn by the experiment's own augmentation; the others are turns.
    turns = {"none": "none", "flip": "flips", "flips": "flips", "d4": "flips"}
    augment = {} if isinstance(views, int) else {"preset": turns[views]}
    plain = changed(
        cached,
        model={"freeze": {**cached.model.freeze.model_dump(), "stages": 0, "cache": False}},
        augment=augment,
    )
    return cached, plain


def _train(config: Config, seed: int, workspace: Workspace, data: CompetitionData) -> dict[str, float]:
    train_run(changed(config, train={"seed": seed}), workspace, [0])
    paths = workspace.run(str(config.name))
    record = files.read_json(paths.record)["folds"]["fold0"]
    part = Predictions.read(paths.fold(0).oof, paths.name)
    value = score(data.metrics[0], data.task, data.targets_of(part.ids), part.values)
    if record["images_per_second"] is None or value != value:
        raise CannotMeasure(f"{paths.name}: no speed or no score")
    return {"rate": float(record["images_per_second"]), "seconds": float(record["seconds"]), "score": float(value)}
