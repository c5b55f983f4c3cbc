"""Settings that are right by themselves and wrong together. Each raises ValueError with one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from goldfold.config.sections import Augment, Section

if TYPE_CHECKING:
    from goldfold.config.schema import Config

S = TypeVar("S", bound=Section)


def merged(section: S, delta: dict[str, Any] | None, where: str) -> S:
    """``section`` with the keys of ``delta`` in place of its own, nested ones too. Raises ValueError in one line."""
    if not delta:
        return section
    try:
        return type(section).model_validate(_deep(section.model_dump(), delta))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def _deep(base: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in delta.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        out[key] = _deep(base[key], value) if nested else value
    return out


def has_augmix(augment: Augment) -> bool:
    """Whether the transforms hold AugMix, whose views the consistency loss compares."""
    return any("AugMix" in item for item in (*(augment.train or ()), *augment.add))


def tricks_fit(config: Config) -> None:
    """Refuse combinations that would silently do nothing or something else."""
    _arcface(config)
    _cached_trunk(config)
    _jsd(config)
    _phases(config)
    if config.model.zero_init_last and config.model.pretrained:
        raise ValueError(
            "model.zero_init_last would undo pretrained weights; set model.pretrained to false, or leave it"
        )
    _idle_keys(config)
    _on_device(config)
    _teacher(config)
    if config.balance.rare_preset is not None and config.competition.task == "regression":
        raise ValueError("balance.rare_preset needs classes, and a regression has none")
    if config.train.prune.amount:
        if config.model.freeze.stages == "all":
            raise ValueError("train.prune finds no trained layer to prune; set model.freeze.stages lower")
        if any(phase.frozen is not None for phase in config.train.phases):
            raise ValueError("train.prune prunes what trains at its epoch; leave frozen out of train.phases")


def _idle_keys(config: Config) -> None:
    """A key that another setting leaves without effect is a mistake, unless it has its default."""
    for name, key, _, needs in idle_keys(config):
        raise ValueError(f"{name}.{key} does nothing without {needs}; leave it out, or set that")


def idle_keys(config: Config) -> Iterator[tuple[str, str, Any, str]]:
    """Section, key, default and what it would need, of each key that another setting leaves without effect and that
    has not its default."""
    for section, name, key, used, needs in _uses(config):
        default = type(section).model_fields[key].default
        if not used and getattr(section, key) != default:
            yield name, key, default, needs


def _uses(config: Config) -> Iterator[tuple[Section, str, str, bool, str]]:
    """Keys that depend on others: their section and its name, the key, whether it has an effect, and what gives it one."""
    schedule, balance, optim, erase = config.schedule, config.balance, config.optim, config.augment.erase
    for key, names in SCHEDULE_KEYS.items():
        yield (schedule, "schedule", key, schedule.name in names, f"schedule.name {' or '.join(names)}")
    for key in ("gamma", "alpha"):
        yield (config.loss, "loss", key, config.loss.name == "focal", "loss.name focal")
    augment = config.augment
    drawn = augment.preset != "none" or bool(augment.train or augment.add)
    yield (augment, "augment", "on", drawn or bool(config.train.phases), "augment.preset, augment.train or augment.add")
    for key in ("mode", "area", "count"):
        yield (erase, "augment.erase", key, erase.prob > 0, "augment.erase.prob above 0")
    freeze = config.model.freeze
    yield (freeze, "model.freeze", "cache_views", freeze.cache, "model.freeze.cache")
    yield (balance, "balance", "beta", balance.loss_weights == "effective", "balance.loss_weights effective")
    yield (balance, "balance", "rare_below", balance.rare_preset is not None, "balance.rare_preset")
    yield (optim, "optim", "lr_batch", optim.lr_scaling != "none", "optim.lr_scaling")
    for key in ("candidates", "max_views", "min_gain"):
        yield (config.tta, "tta", key, config.tta.views == "auto", "tta.views auto")
    tta_on = config.tta.views != "none"
    yield (config.tta, "tta", "merge", tta_on, "several tta.views")
    # A phase may switch clipping and mixing on.
    phases, mix, train = bool(config.train.phases), config.mix, config.train
    yield (optim, "optim", "clip_mode", optim.clip > 0 or phases, "optim.clip above 0")
    mixed = mix.mixup > 0 or mix.cutmix > 0
    yield (mix, "mix", "prob", mixed or phases, "mix.mixup or mix.cutmix")
    both = mix.mixup > 0 and mix.cutmix > 0
    yield (mix, "mix", "switch_prob", both or phases, "both mix.mixup and mix.cutmix")
    yield (train.ema, "train.ema", "warmup", train.ema.decay > 0, "train.ema.decay above 0")
    yield (train.swa, "train.swa", "lr_factor", train.swa.epochs > 0, "train.swa.epochs above 0")
    yield (train.soup, "train.soup", "method", train.soup.epochs > 0, "train.soup.epochs above 0")
    yield (train.prune, "train.prune", "after", train.prune.amount > 0, "train.prune.amount above 0")
    chooses = train.early_stopping.patience > 0 or train.keep == "best"
    needs = "train.early_stopping.patience or train.keep best"
    yield (train.early_stopping, "train.early_stopping", "min_delta", chooses, needs)


SCHEDULE_KEYS = {
    "power": ("polynomial",),
    "decay_epochs": ("step", "exponential"),
    "gamma": ("step", "multi_step", "exponential", "plateau"),
    "patience": ("plateau",),
    "threshold": ("plateau",),
    "cycle_epochs": ("cosine_restarts", "triangular"),
    "cycle_mult": ("cosine_restarts", "triangular"),
    "cycle_decay": ("cosine_restarts", "triangular"),
    "peak_at": ("one_cycle",),
    "start_factor": ("one_cycle", "triangular"),
}
"""Which schedules a key shapes; the others would ignore it."""


def _refuse_idle(section: Section, name: str, key: str, used: bool, needs: str) -> None:
    default = type(section).model_fields[key].default
    if not used and getattr(section, key) != default:
        raise ValueError(f"{name}.{key} does nothing without {needs}; leave it out, or set that")


def _teacher(config: Config) -> None:
    """Pseudo-labels and distillation: which keys shape which form of them."""
    teacher, pseudo, distill = config.teacher, config.teacher.pseudo, config.teacher.distill
    on = pseudo.labels != "none"
    for key in type(pseudo).model_fields:
        if key != "labels":
            _refuse_idle(pseudo, "teacher.pseudo", key, on, "teacher.pseudo.labels")
    for key in ("power", "trim"):
        _refuse_idle(pseudo, "teacher.pseudo", key, pseudo.labels == "soft", "teacher.pseudo.labels soft")
    if on:
        _pseudo_labels(config)
    cross_fitted, online = distill.how == "cross_fitted", distill.how == "online"
    _refuse_idle(distill, "teacher.distill", "temperature", distill.weight > 0, "teacher.distill.weight above 0")
    used = distill.weight > 0 or distill.features > 0
    _refuse_idle(distill, "teacher.distill", "how", used, "teacher.distill.weight above 0")
    _refuse_idle(distill, "teacher.distill", "features", online, "teacher.distill.how online")
    _refuse_idle(distill, "teacher.distill", "inner", cross_fitted, "teacher.distill.how cross_fitted")
    _refuse_idle(teacher, "teacher", "leaky", bool(teacher.runs), "teacher.runs")
    if cross_fitted and teacher.leaky:
        raise ValueError(
            "teacher.distill.how 'cross_fitted' trains teachers that never saw a row, and teacher.leaky is for those that "
            "saw all; leave one out"
        )
    if distill.features and config.model.freeze.cache:
        raise ValueError(
            "teacher.distill.features needs the images, and model.freeze.cache trains on stored features; turn one off"
        )
    stretches = [config.model.freeze.stages]
    if config.train.phases:
        stretches = [stretches[0] if phase.frozen is None else phase.frozen for phase in config.train.phases]
    if distill.features and all(stages == "all" for stages in stretches):
        raise ValueError(
            "teacher.distill.features moves the backbone, and 'all' of it is frozen from the first epoch to the last; leave "
            "one out"
        )
    if online and config.input.normalise != "fixed" and not config.model.freeze.cache:
        raise ValueError(
            f"teacher.distill.how 'online' undoes the student's normalisation, and input.normalise "
            f"'{config.input.normalise}' cannot be undone; set it to fixed, or how to stored"
        )
    if config.competition.task == "regression":
        _refuse_classes(distill, "teacher.distill", "temperature")


def _pseudo_labels(config: Config) -> None:
    """Pseudo-labels are asked for: there are images for them, epochs with them, and confidences where those count."""
    pseudo, competition, train = config.teacher.pseudo, config.competition, config.train
    have = {"test": competition.test_csv is not None, "unlabelled": bool(competition.unlabelled)}
    if not have.get(pseudo.images, any(have.values())):
        needs = {"test": "competition.test_csv", "unlabelled": "competition.unlabelled"}
        lacking = needs.get(pseudo.images, " or ".join(needs.values()))
        raise ValueError(f"teacher.pseudo.images '{pseudo.images}' has no images to label; give {lacking}")
    if pseudo.cool_down >= train.epochs:
        raise ValueError(
            f"teacher.pseudo.cool_down {pseudo.cool_down} leaves no epoch with pseudo-labels; make it less than "
            f"train.epochs ({train.epochs})"
        )
    if pseudo.cool_down and train.early_stopping.patience:
        raise ValueError("teacher.pseudo.cool_down needs the last epochs; set train.early_stopping.patience to 0")
    if competition.task == "regression":
        if pseudo.labels == "hard":
            raise ValueError("teacher.pseudo.labels 'hard' needs classes, and a regression has none; set it to soft")
        for key in ("min_prob", "power", "trim", "weighting"):
            _refuse_classes(pseudo, "teacher.pseudo", key)


def _refuse_classes(section: Section, name: str, key: str) -> None:
    if getattr(section, key) != type(section).model_fields[key].default:
        raise ValueError(f"{name}.{key} is for probabilities, and a regression has none; leave it out")


def _arcface(config: Config) -> None:
    arcface = config.model.head.kind == "arcface"
    if config.loss.margin and not arcface:
        raise ValueError("loss.margin needs model.head.kind arcface")
    if arcface and (config.competition.task != "multiclass" or config.loss.name not in ("auto", "cross_entropy")):
        raise ValueError("model.head.kind 'arcface' is for a multiclass task with cross_entropy")


def _jsd(config: Config) -> None:
    if not config.loss.jsd:
        return
    if config.competition.task not in ("binary", "multiclass"):
        raise ValueError("loss.jsd is for binary and multiclass tasks")
    if config.balance.rare_preset is not None and not has_augmix(Augment(add=config.augment.add)):
        raise ValueError("loss.jsd with balance.rare_preset needs AugMix in augment.add, which rare rows keep")
    for number, (augment, mix) in enumerate(_stretches(config)):
        where = f" (train.phases[{number}])" if config.train.phases else ""
        if not has_augmix(augment):
            raise ValueError(f"loss.jsd compares AugMix's views; put AugMix into augment.add or augment.train{where}")
        if mix.mixup or mix.cutmix:
            raise ValueError(
                f"loss.jsd needs a clean view, and mix leaves none; set mix.mixup and mix.cutmix to 0{where}"
            )


def _on_device(config: Config) -> None:
    """What has no form on the device, but for the transforms themselves, which the augment room knows."""
    if not any(augment.on == "device" for augment, _ in _stretches(config)):
        return
    for key, used in (
        ("loss.jsd", config.loss.jsd > 0),
        ("balance.rare_preset", config.balance.rare_preset is not None),
        ("input.colour", config.input.colour != "rgb"),
        ("input.local_mean", config.input.local_mean != "none"),
    ):
        if used:
            raise ValueError(f"{key} works on images that the host augments; set augment.on to host, or leave it out")


def _stretches(config: Config) -> list[tuple[Augment, Any]]:
    """Augmentation and mixing of each phase; one pair where there are no phases."""
    if not config.train.phases:
        return [(config.augment, config.mix)]
    pairs = []
    for number, phase in enumerate(config.train.phases):
        where = f"train.phases[{number}]"
        augment = merged(config.augment, phase.augment, f"{where}.augment")
        pairs.append((augment, merged(config.mix, phase.mix, f"{where}.mix")))
    return pairs


def _phases(config: Config) -> None:
    _stretches(config)
    stored = config.input.cache_size or config.input.size
    for number, phase in enumerate(config.train.phases):
        where = f"train.phases[{number}]"
        if phase.size is not None and phase.size > stored:
            raise ValueError(f"{where}.size {phase.size} is above the stored {stored}; raise input.cache_size")
        delta = {"name": phase.optimizer} if isinstance(phase.optimizer, str) else phase.optimizer
        merged(config.optim, delta, f"{where}.optimizer")
        if phase.lr is not None and isinstance(phase.optimizer, dict) and "lr" in phase.optimizer:
            raise ValueError(f"{where} gives lr twice; leave it out of optimizer")


def _cached_trunk(config: Config) -> None:
    """The stored features stand for fixed pixels: whatever would change pixels or trunk cannot be honoured."""
    if not config.model.freeze.cache:
        return
    if config.model.freeze.stages == 0:
        raise ValueError("model.freeze.cache needs frozen stages; set model.freeze.stages")
    if not config.input.cache:
        raise ValueError("model.freeze.cache keeps features beside decoded images; set input.cache to true")
    augment, mix, views = config.augment, config.mix, config.model.freeze.cache_views
    draws = bool(augment.add) or (augment.preset != "none" if augment.train is None else bool(augment.train))
    if isinstance(views, str) and draws:
        raise ValueError(
            f"model.freeze.cache trains on the views '{views}' alone; set augment.preset to none, or "
            "model.freeze.cache_views to how many draws of augment to store"
        )
    if isinstance(views, int) and not draws:
        raise ValueError(
            f"model.freeze.cache_views {views} stores draws of augment, which leaves images as they are; set "
            "augment.preset, or cache_views to flips"
        )
    if augment.on == "device":
        raise ValueError("model.freeze.cache draws while its features are stored; set augment.on to host")
    if augment.erase.prob:
        raise ValueError("model.freeze.cache has no pixels to erase while it trains; set augment.erase.prob to 0")
    if config.loss.jsd:
        raise ValueError("model.freeze.cache shows one view of an image at a time; set loss.jsd to 0")
    if isinstance(views, int) and config.teacher.distill.how == "online":
        raise ValueError(
            f"model.freeze.cache_views {views} are drawn, and teacher.distill.how 'online' asks about flips and turns "
            "alone; set how to stored, or cache_views to flips"
        )
    if mix.mixup or mix.cutmix:
        raise ValueError("model.freeze.cache stores features of single images; set mix.mixup and mix.cutmix to 0")
    if config.balance.rare_preset is not None:
        raise ValueError("model.freeze.cache cannot augment rare classes otherwise; leave balance.rare_preset out")
    if config.train.prune.amount:
        raise ValueError(
            "model.freeze.cache needs fixed frozen layers, and train.prune changes them; set its amount to 0"
        )
    for number, phase in enumerate(config.train.phases):
        for key in ("size", "augment", "mix", "frozen"):
            if getattr(phase, key) is not None:
                raise ValueError(
                    f"model.freeze.cache cannot change {key} on the way; leave train.phases[{number}].{key} out"
                )
