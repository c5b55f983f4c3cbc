"""How a pipeline is made small: the canary's own experiments and rounds, written beside its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from goldfold import files
from goldfold.config import Config, changed_keys, config_from_dict, dump_yaml
from goldfold.config.schema import (
    Augment,
    Balance,
    Distill,
    DistillRound,
    EnsembleRound,
    Folds,
    Freeze,
    Loss,
    Mix,
    Optim,
    PseudoLabelRound,
    Schedule,
    SubmitRound,
    Train,
    TrainRound,
    Tta,
)
from goldfold.errors import BadInput
from goldfold.paths import find_input
from goldfold.pipeline.graph import Plan

FOLD = "goldfold_canary_fold"
"""The column of the canary's train CSV that holds the folds."""
LR = 1e-3
BATCH = 16
OWN = ("competition.", "folds.", "model.weights=", "input.size=", "input.normalise=", "train.seed=", "train.seeds=")
"""Overrides that are settled when the pipeline is read: the canary has its own competition, folds, paths and size, and shifts the seeds."""

EVERY_IMAGE: dict[str, Any] = {
    **{"min_prob": 0.0, "top_k": None, "margin": None},
    **{"power": 1.0, "trim": 0.0, "weight": 1.0, "weighting": "equal", "sampling_prob": None, "cool_down": 0},
}
"""All images of the pool are labelled, as the teachers say, and heard in full to the last epoch: on shuffled labels
teachers are seldom sure, and a path that is walked by few or hardly heard would be silent whatever it carries."""
NEAR: tuple[dict[str, Any], ...] = ({"Multiply": {"factors": [0.96, 0.98, 1.02, 1.04]}},)
"""What ``tta.views: auto`` chooses from: pictures that a network knows again, which a mirror image is not."""

FITTED = ("simplex", "greedy", "stacking")
"""Ways of blending that learn from labels."""


@dataclass(frozen=True)
class Listener:
    """A round. ``hears``: its teachers, or an ensemble's members; ``leaky``: on purpose, itself or one that it hears."""

    name: str
    kind: str
    hears: tuple[str, ...]
    leaky: bool

    @property
    def learns(self) -> bool:
        """Whether it is a student: what it hears moves a network."""
        return bool(self.hears) and self.kind != "ensemble"


def shrink(
    config: Config,
    *,
    root: Path,
    labels: Sequence[str],
    folds: int,
    size: int,
    epochs: int,
    seed: int,
    pool: bool,
    alike: bool = False,
) -> Config:
    """``config`` on the canary's competition, small and made to memorise, its teachers heard in full. What is tested stays:
    who teaches whom and how, and that views are chosen by score.

    ``root``: the project's, where weights lie. ``labels``: the task's, in order, as the sample may lack some (empty: the
    task has none). ``pool``: whether there is an unlabelled pool beside the test set. ``seed`` shifts the run's seeds.
    ``alike``: in plain colours, as ``needs_alike`` says.
    """
    values = config.model_dump(mode="json")
    competition, model, train = values["competition"], values["model"], values["train"]
    competition |= {
        "train_csv": "data/train.csv",
        "test_csv": "data/test.csv",
        "sample_submission": None,
        "image_path": "data/images/{%s}.png" % config.competition.id,  # noqa: UP031 - the braces are the pattern's
        "test_image_path": None,
        "group": None,  # twins cross folds on purpose
        "classes": list(labels) or None,
        "external": [],
        "unlabelled": [],
    }
    if pool:
        competition["unlabelled"] = [{"csv": "data/unlabelled.csv", "image_path": competition["image_path"]}]
    values["folds"] = _defaults(Folds(scheme="column", n=folds, column=FOLD))
    values["input"] |= {"size": size, "resize": "squash", "range": "full", "cache": True}
    values["input"] |= {"cache_size": None, "cache_dir": None}
    if config.teacher.distill.how == "online":
        values["input"]["normalise"] = "fixed"  # see needs_alike
    if alike:
        values["input"] |= {"colour": "rgb", "local_mean": "none"}
    values["augment"], values["mix"] = _defaults(Augment(preset="none")), _defaults(Mix())
    values["balance"], values["schedule"] = _defaults(Balance()), _defaults(Schedule())
    values["loss"] = _defaults(Loss(margin=config.loss.margin))
    values["optim"] = _defaults(Optim(lr=LR, weight_decay=0.0))
    model |= {"drop_rate": 0.0, "drop_path_rate": 0.0, "freeze": _defaults(Freeze())}
    model["head"]["dropouts"] = 1
    model["metadata"]["drop_rate"] = 0.0
    if config.model.weights is not None:
        model["weights"] = str(find_input(root, config.competition.name, config.model.weights).resolve())
    kept = {key: train[key] for key in ("precision", "memory_format", "compile", "device")}
    values["train"] = {
        **_defaults(Train()),
        **kept,
        "epochs": epochs,
        "batch_size": BATCH,
        "validate_every": epochs,
        "workers": 0,
        "seed": config.train.seed + seed,
        # One further seed shows what the others would: the paths of seeds are the same.
        "seeds": [other + seed for other in config.train.seeds[:1]],
    }
    if config.teacher.pseudo.labels != "none":
        values["teacher"]["pseudo"] |= EVERY_IMAGE
    values["teacher"]["distill"] |= heard(config.teacher.distill)
    # A network remembers pictures as it saw them, and no augmentation shows them otherwise. Fixed views know no label;
    # views that are chosen by score do.
    values["tta"]["size"] = None
    if config.tta.views == "auto":
        values["tta"] |= {"candidates": list(NEAR), "min_gain": Tta().min_gain}
    else:
        values["tta"] |= {"views": "none", "merge": Tta().merge}
    values["tracking"]["wandb"] = False
    return config_from_dict(values, f"the canary's form of {config.name}")


def needs_alike(configs: Iterable[Config]) -> bool:
    """Whether some student shows its teachers stored images, each its own. Its features are not stored here, so that they
    see its batches: normalised so that they can undo it, in their own colours."""
    return any(config.model.freeze.cache and config.teacher.distill.how == "online" for config in configs)


def heard(distill: Distill) -> dict[str, Any]:
    """The keys by which a distillation is heard in full; none where there is none.

    A student of features alone gets the same teachers' probabilities, which say more of a label than features do; these
    weigh no more than them. Inner folds' answers, which know no label of their rows, get a half: a student of these alone
    would remember nothing, and so carry nothing on to those that it teaches.
    """
    if not distill.weight and not distill.features:
        return {}
    weight = 0.5 if distill.how == "cross_fitted" else 1.0
    return {"weight": weight, "temperature": 1.0, "features": min(distill.features, 1.0)}


def plain_blends(plan: Plan) -> dict[str, dict[str, Any]]:
    """By name, the keys that change of ensembles that teach: they say the mean of what their members say.

    Weights, stacks and temperatures that are fitted to shuffled labels are noise: they drop members, or leave next to
    nothing of what all of them remember.
    """
    teachers = {name for item in plan.rounds if item.config is not None for name in item.needs}
    found: dict[str, dict[str, Any]] = {}
    for item in plan.rounds:
        if not isinstance(item.step, EnsembleRound) or item.name not in teachers:
            continue
        fitted = item.step.method in FITTED
        keys = {"method": "mean", "bags": None} if fitted else {}
        keys["calibration"] = "none"
        changed = {key: value for key, value in keys.items() if getattr(item.step, key) != value}
        if changed:
            found[str(item.name)] = changed
    return found


def _defaults(section: Any) -> dict[str, Any]:
    return dict(section.model_dump(mode="json"))


def changes(plan: Plan, new: Mapping[str, Config]) -> dict[str, Any]:
    """Dotted keys in which the canary's experiments differ from the pipeline's, with their new value; a list of values
    where experiments differ. Of ensembles ``rounds.<name>.<key>``. Competition and folds are its own altogether and not
    listed."""
    found: dict[str, list[Any]] = {}
    for name, config in new.items():
        after = config.model_dump(mode="json")
        for key in changed_keys(plan.configs[name].model_dump(mode="json"), after):
            if key.split(".")[0] in ("competition", "folds", "name"):
                continue
            node: Any = after
            for part in key.split("."):
                node = node[part]
            found.setdefault(key, []).append(node)
    blends = {f"rounds.{name}.{key}": value for name, keys in plain_blends(plan).items() for key, value in keys.items()}
    return {key: values[0] if all(v == values[0] for v in values) else values for key, values in found.items()} | blends


def kept_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that hold for the canary's experiments as they hold for the pipeline's."""
    return [text for text in overrides if not text.startswith(OWN)]


def write_pipeline(folder: Path, plan: Plan, configs: Mapping[str, Config]) -> Path:
    """Write the experiments and the rounds, without submissions, into ``folder``; returns the pipeline's path."""
    rounds: list[dict[str, Any]] = []
    blends = plain_blends(plan)
    for item in plan.rounds:
        if isinstance(item.step, SubmitRound):
            continue
        values = item.step.model_dump(mode="json") | blends.get(str(item.name), {})
        if isinstance(item.step, PseudoLabelRound):
            values |= EVERY_IMAGE
        if isinstance(item.step, DistillRound):
            values |= heard(item.step)
        if isinstance(item.step, TrainRound):
            name = str(item.name)
            files.write_text(folder / f"{name}.yaml", dump_yaml(configs[name]))
            values |= {"experiment": f"{name}.yaml", "name": name, "set": {}}
        rounds.append(values)
    path = folder / "pipeline.yaml"
    values = {"name": plan.pipeline.name, "rounds": rounds}
    files.write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
    return path


def listen(plan: Plan) -> tuple[Listener, ...]:
    """Every round but submissions: what it hears, and whether it is leaky on purpose. Whoever hears a leaky round is.

    Raises BadInput when a round hears what is on disk already: that was trained on the true labels.
    """
    found: dict[str, Listener] = {}
    for item in plan.rounds:
        if isinstance(item.step, SubmitRound):
            continue
        for other in item.needs:
            if other not in found:
                raise BadInput(
                    f"{plan.path}: rounds.{item.number - 1}",
                    f"'{other}' is made by no round, and the canary needs every teacher and member on shuffled labels",
                    "put its round into the pipeline",
                )
        leaky = item.config is not None and item.config.teacher.leaky
        leaky = leaky or any(found[other].leaky for other in item.needs)
        found[str(item.name)] = Listener(str(item.name), item.step.kind, item.needs, leaky)
    return tuple(found.values())
