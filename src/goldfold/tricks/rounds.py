"""Section E: rounds of teachers and students."""

from __future__ import annotations

from goldfold.tricks.trick import Trick

DISTILLATION = (
    "knowledge distillation: offline from stored teacher probabilities, online from the teacher on the same augmented "
    "view; temperature, mixing weight"
)
PSEUDO = (
    "pseudo-labels: hard or soft, `min_prob`, class-balanced `top_k`, agreement margin between teachers, `power`, "
    "`sampling_prob`, `trim`, several rounds, cool-down without them"
)
NOISY = "noisy student"
REPEATS = 'repeated K-fold, several seeds ("multi validations")'

NEEDS_TEACHER = "needs finished runs or ensembles in teacher.runs; a distill round of a pipeline names them for you"
NEEDS_LABELS = "needs finished runs or ensembles in teacher.runs; a pseudo_label round of a pipeline names them for you"


def _distill(name: str, title: str, source: str, *keys: str) -> Trick:
    return Trick(
        name=name,
        section="E",
        title=title,
        row=DISTILLATION,
        keys=("teacher.distill.weight", *(f"teacher.distill.{key}" for key in keys)),
        card="distillation",
        default="off (weight 0)",
        source=source,
        note=NEEDS_TEACHER,
    )


def _pseudo(name: str, title: str, source: str, *keys: str, default: str = "off") -> Trick:
    return Trick(
        name=name,
        section="E",
        title=title,
        row=PSEUDO,
        keys=tuple(f"teacher.pseudo.{key}" for key in keys),
        card="pseudo_labels",
        default=default,
        source=source,
        note=NEEDS_LABELS,
    )


ROUNDS = (
    _distill("distill_stored", "targets from the teacher's probabilities, averaged over views", "Hinton et al. 2015", "how"),
    _distill("distill_online", "the teacher answers on the very augmented view", "Beyer et al. 2022", "how"),
    _distill(
        "distill_cross_fitted",
        "targets from inner folds: no teacher has seen the row",
        "Wolpert 1992 (stacked generalization), inside each fold; Goldfold's own",
        "how",
        "inner",
    ),
    _distill("distill_temperature", "both sides softened", "Hinton et al. 2015", "temperature"),
    _distill("distill_features", "the teacher's pooled features matched too", "Romero et al. 2015 (FitNets)", "features"),
    _pseudo("pseudo_soft", "teachers' probabilities on unlabelled images", "Lee 2013; Xie et al. 2020", "labels", "images"),
    _pseudo("pseudo_hard", "teachers' likeliest class on unlabelled images", "Lee 2013", "labels", "images"),
    _pseudo("pseudo_min_prob", "only images that the teachers are sure of", "Sohn et al. 2020 (FixMatch, 0.95)", "min_prob"),
    _pseudo("pseudo_top_k", "equally many images a class, the surest", "Xie et al. 2020 (noisy student)", "top_k"),
    _pseudo("pseudo_margin", "only images on which the members agree", "practice: no controlled study known to us", "margin"),
    _pseudo("pseudo_power", "sharpened probabilities", "Berthelot et al. 2019 (MixMatch)", "power"),
    _pseudo("pseudo_trim", "small probabilities set to 0", "practice: no controlled study known to us", "trim"),
    _pseudo(
        "pseudo_weight",
        "images weighed less, or by confidence",
        "Lee 2013 (a weight); Arazo et al. 2020 discuss confirmation bias",
        "weight",
        "weighting",
    ),
    _pseudo(
        "pseudo_sampling_prob",
        "a fixed share of each epoch",
        "lRomul 2021 (RANZCR CLiP); no controlled study known to us",
        "sampling_prob",
        default="off (null)",
    ),
    _pseudo("pseudo_cool_down", "last epochs on true labels alone", "lRomul 2021 (RANZCR CLiP); no controlled study known to us", "cool_down"),
    Trick(
        name="noisy_student",
        section="E",
        title="a larger student with heavier noise learns pseudo-labels",
        row=NOISY,
        keys=("teacher.pseudo.labels", "model.drop_rate", "model.drop_path_rate", "augment.add", "augment.preset"),
        card="noisy_student",
        default="off",
        source="Xie et al. 2020",
        note="a recipe: configs/recipes/noisy-student.yaml, in a pseudo_label round",
    ),
    Trick(
        name="repeated_folds",
        section="E",
        title="several deals of the folds",
        row=REPEATS,
        keys=("folds.repeats",),
        card="multi_validation",
        default="off (1)",
        source="Kim 2009 (repeated cross-validation)",
        note="folds are dealt once for a competition; set folds.repeats before the first run",
    ),
    Trick(
        name="several_seeds",
        section="E",
        title="every fold trained with several seeds, predictions averaged",
        row=REPEATS,
        keys=("train.seeds",),
        card="multi_validation",
        default="off ([])",
        source="Lakshminarayanan et al. 2017 (deep ensembles)",
        note="name further seeds in train.seeds; an ablation has seeds of its own",
    ),
)  # fmt: skip
