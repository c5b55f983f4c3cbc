"""All tricks together, and the settings that are none."""

from __future__ import annotations

import difflib
import json

from goldfold.errors import BadInput
from goldfold.tricks.image import IMAGE
from goldfold.tricks.mixing import MIXING
from goldfold.tricks.models import MODELS
from goldfold.tricks.optimisation import OPTIMISATION
from goldfold.tricks.prediction import PREDICTION
from goldfold.tricks.rounds import ROUNDS
from goldfold.tricks.trick import Trick

SECTIONS: dict[str, str] = {
    "A": "Augmentation on one image",
    "B": "Augmentation across images, and extra data",
    "C": "Models",
    "D": "Optimisation",
    "E": "Rounds",
    "F": "Prediction and ensemble",
}

TRICKS: dict[str, Trick] = {
    trick.name: trick for trick in (*IMAGE, *MIXING, *MODELS, *OPTIMISATION, *ROUNDS, *PREDICTION)
}
"""By name, in the catalogue's order."""

RECIPES: dict[str, tuple[str, str]] = {
    "bag-of-tricks": (
        "large batch, linear scaling, warm-up, zero-γ, no bias decay, low precision, ResNet-D, cosine, smoothing, mixup",
        "He et al. 2019",
    ),
    "fastai": (
        "one cycle, mixup 0.1, progressive resizing, unfreezing with discriminative rates",
        "Howard and Gugger 2020",
    ),
    "adam-then-sgd": ("Adam for the first epochs, SGD for the last", "Keskar and Socher 2017"),
    "vit-finetune": (
        "layer decay, drop-path, mixup + CutMix, EMA",
        "Bao et al. 2022 (BEiT); He et al. 2022 (MAE)",
    ),
    "small-data": ("frozen batch-norm, heavy augmentation, multi-sample dropout", "Goldfold's own"),
    "noisy-student": (
        "dropout 0.5, drop-path 0.2, RandAugment, erasing, cool-down: the noise of a larger student",
        "Xie et al. 2020",
    ),
    "kaggle-classic": (
        "cutout, warm-up + cosine, 5× dropout head, rank-mean ensemble",
        "Ha, Liu and Liu 2020 (SIIM-ISIC, first place)",
    ),
}
"""configs/recipes/<name>.yaml: what it is made of, and whose it is."""

NOT_TRICKS: dict[str, str] = {
    "name": "a name",
    "competition": "describes the data and the question",
    "folds": "how rows are dealt; changing it makes scores incomparable",
    "input.size": "a size; train.phases changes it on the way",
    "input.interpolation": "how files become pixels",
    "input.range": "how files become pixels",
    "input.cache": "speed; results stay the same",
    "input.cache_dir": "a place",
    "augment.on": "speed; the same ranges and chances, other draws",
    "train.epochs": "a size of the training",
    "train.seed": "chance",
    "train.memory_format": "speed; results stay the same but for rounding",
    "train.compile": "speed; results stay the same but for rounding",
    "train.device": "the machine",
    "train.workers": "speed; results stay the same",
    "train.keep": "which epoch counts, see docs/decisions/0002-last-epoch.md",
    "train.validate_every": "how often the training is looked at",
    "train.early_stopping": "when a training ends; it looks at the validation fold",
    "teacher.runs": "names",
    "teacher.leaky": "no trick but a mark, see docs/decisions/0004-leak-rule.md",
    "tta.batch_size": "speed; results stay the same but for rounding",
    "tracking": "what is logged",
}
"""Keys, or whole sections of keys, that are plain settings, each with the reason."""


def find_trick(name: str) -> Trick:
    """Raises BadInput naming near names when there is no such trick."""
    if name in TRICKS:
        return TRICKS[name]
    plain = name.lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(plain, TRICKS, 3, 0.6)
    near += [known for known in TRICKS if plain in known and plain and known not in near][:3]
    mend = f"did you mean {' or '.join(near)}?" if near else "goldfold tricks lists them"
    raise BadInput("tricks", f"there is no trick '{name}'", mend)


def overrides(values: dict[str, object]) -> str:
    """As they are written on the command line."""
    return " ".join(f"{key}={_written(value)}" for key, value in values.items())


def describe(trick: Trick) -> str:
    """A trick in a few lines of text."""
    off = "" if trick.off == {"augment.add": []} else overrides(trick.off)
    lines = [
        f"{trick.name}: {trick.title}",
        f"keys:    {', '.join(trick.keys)}",
        f"on:      {overrides(trick.on) or 'no single switch'}",
        f"off:     {off or ('its transform is taken out of augment.add' if trick.on else '-')}",
        f"default: {trick.default}",
        f"source:  {trick.source}",
        f"card:    docs/tricks/{trick.card}.md",
    ]
    return "\n".join([*lines, f"note:    {trick.note}"] if trick.note else lines)


def listing() -> str:
    """All names with their titles, by section; those without a single switch are marked."""
    width = max(map(len, TRICKS))
    lines = list[str]()
    for letter, title in SECTIONS.items():
        lines += [*([""] if lines else []), f"{letter}. {title}"]
        members = [trick for trick in TRICKS.values() if trick.section == letter]
        lines += [f"  {trick.name:{width}} {' ' if trick.on else '*'} {trick.title}" for trick in members]
    return "\n".join([*lines, "", "* no single switch: goldfold tricks NAME says why"])


def _written(value: object) -> str:
    """JSON without quotes round plain words, in quotes for the shell where that would split or change it."""
    if isinstance(value, str):
        return value
    text = json.dumps(value)
    return f"'{text}'" if any(letter in text for letter in ' {["') else text
