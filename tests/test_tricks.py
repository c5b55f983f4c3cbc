"""The registry of tricks, their cards, the configuration's keys and the catalogue belong together."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold.augment import LABEL_SAFE, PRESETS, try_augmenter
from goldfold.cli import main
from goldfold.config import Config, config_from_dict, load_config
from goldfold.config.consistency import merged
from goldfold.config.schema import EnsembleRound, Phase, Pipeline, Section
from goldfold.errors import BadInput
from goldfold.paths import shipped_configs
from goldfold.tricks import NOT_TRICKS, RECIPES, SECTIONS, TRICKS, Trick, describe, find_trick, listing, page, table

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "docs/tricks"
TINY = {
    "name": "tiny",
    "competition": {
        "name": "tiny",
        "task": "multiclass",
        "metric": "accuracy",
        "train_csv": "train.csv",
        "test_csv": "test.csv",
        "image_path": "{id}.png",
    },
    "input": {"size": 224},
    "model": {"pretrained": False},
}

CATALOGUE = {
    "A": [
        "colour skew: H, S, V each times a random factor, clipped",
        "per-image RGB norm",
        "black and white",
        "Ben Graham: subtract the local mean, and the article's HSV + blur form",
        "colour spaces HLS, HSV, LUV, XYZ, YCrCb, Lab, YUV, and RGBA",
        "center crop, random crop, random resized crop",
        "horizontal, vertical flip, transpose, D4",
        "colour jitter, brightness/contrast, multiplicative noise",
        "affine, perspective, rotation",
        "invert, posterize, solarize, autocontrast, equalize",
        "cutout, random erasing",
        "AutoAugment, RandAugment, TrivialAugment",
        "AugMix with the JSD consistency loss",
        "presets that say which are label-safe",
    ],
    "B": [
        "mixup, cutmix, both with a switch probability, alpha free",
        "augmentation off in the first/last epochs",
        "external datasets, train only, own weight",
        "class balance: loss weights (inverse, effective number), oversampling, undersampling, heavier augmentation",
    ],
    "C": [
        "any timm backbone",
        "ResNet-B, C, D tweaks",
        "extra hidden layers in the head; multi-sample dropout; GeM, average, max, concat pooling; ArcFace head",
        "dropout, drop-path",
        "activation swap: ReLU, LeakyReLU, PReLU, ELU, SiLU, GELU",
        "dilated convolution",
        "kernel size of the stem; 1×1 reduction before the head",
        "zero-γ; Kaiming initialisation of new layers",
        "metadata branch: numeric and categorical CSV columns joined before the head",
        "auxiliary targets: extra label columns with their own weight, dropped at inference",
        "pruning: magnitude masks",
        "pretrained weights by file (domain-matched, Places365-like), by hub, or none; never a hub when offline",
        "which layers train: head, last k stages, all; gradual unfreezing by epoch; frozen batch-norm stage",
    ],
    "D": [
        "SGD+momentum, RMSProp, Adagrad, Adadelta, Adam, AdamW, Adafactor, NovoGrad, LAMB, Lookahead, Ranger",
        "Adam first, SGD fine-tune after",
        "no weight decay on biases and norms",
        "layer-wise learning rates; separate head rate",
        "linear LR scaling by batch size",
        "warm-up",
        "step, multi-step, exponential, polynomial, plateau, cosine, cosine with restarts (SGDR), triangular cyclic, one-c",
        "LR finder: exponential ramp, steepest slope, plot",
        "gradient accumulation, with the last partial window flushed; batch, accumulation or LR raised late in training",
        "gradient clipping, off by default",
        "mixed precision: fp16 with loss scaling (T4), bf16",
        "progressive resizing; small images + big batch, then large images + small batch + low LR",
        "large batch over several GPUs",
        "label smoothing: multiclass, and the binary form t(1−s)+s/2",
        "focal, BCE-for-multiclass, soft-target CE",
        "L1, L2 penalties",
        "frozen-trunk feature cache: the frozen stages run once over a set of views, only the tail trains",
        "EMA of weights; stochastic weight averaging; checkpoint soup over epochs",
    ],
    "E": [
        "knowledge distillation: offline from stored teacher probabilities, online from the teacher on the same augmented",
        "pseudo-labels: hard or soft, `min_prob`, class-balanced `top_k`, agreement margin between teachers, `power`,",
        "noisy student",
        'repeated K-fold, several seeds ("multi validations")',
    ],
    "F": [
        "TTA: flips, D4, scales, five-crop, ten-crop, multiply; merge by mean, geometric mean, max, on probabilities;",
        "larger test resolution",
        "blends: mean, geometric, rank mean, weights by simplex optimisation, greedy selection with replacement (Caruana),",
        "thresholds and QWK cut points fitted on OOF, cross-fitted",
    ],
}
"""The beginnings of the rows that are built. A trick's row says it in full."""

NAMED_BY_ABLATE = [
    "linear_scaling",
    "warmup",
    "zero_gamma",
    "no_bias_decay",
    "label_smoothing",
    "cosine",
    "mixup",
    "cutmix",
    "ema",
    "swa",
    "soup",
    "layer_decay",
    "randaugment",
    "autoaugment",
    "trivialaugment",
    "augmix_jsd",
    "random_erasing",
    "cutout",
    "freeze_stages",
    "freeze_batch_norm",
    "cached_trunk",
    "gem",
    "multi_sample_dropout",
    "arcface",
    "focal",
    "bce",
    "oversample",
    "undersample",
    "class_weights",
    "clip",
    "progressive_resizing",
    "clean_last_epochs",
    "adam_then_sgd",
    "gradual_unfreezing",
    "one_cycle",
    "sgdr",
]

ROUND_NAMES = ("rounds.kind", "rounds.name", "rounds.members")
"""Which runs are blended, and what the blend is called."""

every_trick = pytest.mark.parametrize("trick", TRICKS.values(), ids=lambda trick: trick.name)
every_card = pytest.mark.parametrize("card", sorted({trick.card for trick in TRICKS.values()}))


def dotted(section: type[Section], prefix: str = "") -> list[str]:
    """Every key of the schema that holds a value, lists of sections as one."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += dotted(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


KEYS = [*dotted(Config), *(f"rounds.{name}" for name in EnsembleRound.model_fields)]


def set_in(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``values`` with dotted overrides."""
    out = yaml.safe_load(yaml.safe_dump(values))
    for key, value in overrides.items():
        *sections, last = key.split(".")
        node = out
        for part in sections:
            node = node.setdefault(part, {})
        node[last] = value
    return out


def value_of(config: Config, key: str) -> Any:
    node: Any = config.model_dump(mode="json")
    for part in key.split("."):
        node = node[part]
    return node


def text_of(card: str) -> str:
    return (CARDS / f"{card}.md").read_text(encoding="utf-8")


def snippets(card: str) -> list[dict[str, Any]]:
    return [
        yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", text_of(card), re.MULTILINE | re.DOTALL)
    ]


# --- keys --------------------------------------------------------------------------------------------------------------


def test_every_key_is_a_tricks_or_a_plain_setting_and_never_both() -> None:
    of_tricks = {key for trick in TRICKS.values() for key in trick.keys}
    plain = {key for key in KEYS if any(key == name or key.startswith(f"{name}.") for name in NOT_TRICKS)}
    missing = [key for key in KEYS if key not in of_tricks | plain]
    assert [key for key in missing if key not in ROUND_NAMES] == [], "no trick has these keys"
    assert of_tricks & plain <= {"competition.external", "folds.repeats"}
    assert of_tricks <= set(KEYS)
    assert all(NOT_TRICKS.values())


def test_plain_settings_are_keys_of_the_schema() -> None:
    unknown = [name for name in NOT_TRICKS if not any(key == name or key.startswith(f"{name}.") for key in KEYS)]
    assert unknown == []


def test_no_section_of_tricks_is_declared_plain() -> None:
    sections = ("augment", "mix", "model", "loss", "optim", "schedule", "balance", "train", "input")
    assert not [name for name in NOT_TRICKS if name in sections]
    single = "input.colour input.local_mean input.normalise train.phases train.ema train.swa train.soup train.prune"
    tricks = [*single.split(), "train.precision", "train.accumulate", "competition.external"]
    assert not set(tricks) & NOT_TRICKS.keys()


# --- tricks ------------------------------------------------------------------------------------------------------------


def test_the_names_of_an_ablation_are_known() -> None:
    assert [name for name in NAMED_BY_ABLATE if name not in TRICKS] == []
    assert all(name == trick.name for name, trick in TRICKS.items())
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in TRICKS)


@every_trick
def test_a_trick_can_be_turned_on_and_off(trick: Trick) -> None:
    if not trick.on:
        assert trick.note, "without a switch, a note says why"
        assert not trick.off or set(trick.off) <= set(trick.keys)
        return
    assert set(trick.on) <= set(KEYS)
    assert set(trick.on) & set(trick.keys)
    assert trick.off
    off = config_from_dict(set_in(TINY, trick.off), "off")
    # As an ablation does it: on is written over off.
    on = config_from_dict(set_in(TINY, {**trick.off, **trick.on}), "on")
    assert on != off
    assert all(value_of(on, key) == value for key, value in trick.on.items())
    assert set(trick.off) <= set(trick.on) | set(trick.keys)
    # What is on must go off again: at least one key of every trick is changed back.
    assert config_from_dict(set_in(TINY, {**trick.on, **trick.off}), "off again") != on


@every_trick
def test_a_tricks_transforms_can_be_built_and_change_images(trick: Trick) -> None:
    if "augment.add" not in trick.on:
        return
    config = config_from_dict(set_in(TINY, {"augment.preset": "none", **trick.on}), "on")
    try_augmenter(config.augment, 32, 40, 3)


@every_trick
def test_the_default_is_the_schemas(trick: Trick) -> None:
    assert trick.default
    if not trick.on or "augment.add" in trick.on:
        return
    plain = config_from_dict({key: value for key, value in TINY.items() if key in ("name", "competition")}, "tiny")
    is_on = all(value_of(plain, key) == value for key, value in trick.on.items())
    assert trick.default.startswith("on") == is_on, trick.default


@every_trick
def test_a_trick_names_its_source(trick: Trick) -> None:
    dated = re.search(r"\b(19|20)\d\d\b", trick.source)
    assert dated or re.search(r"no controlled study|Goldfold's own|practice", trick.source)
    assert trick.section in SECTIONS


def test_every_row_of_the_catalogue_is_served_and_none_is_invented() -> None:
    assert list(CATALOGUE) == list(SECTIONS)
    for letter, rows in CATALOGUE.items():
        served = list(dict.fromkeys(trick.row for trick in TRICKS.values() if trick.section == letter))
        assert [row for row in rows if not any(text.startswith(row) for text in served)] == []
        assert [text for text in served if not any(text.startswith(row) for row in rows)] == []


def test_an_unknown_trick_is_refused_with_near_names() -> None:
    with pytest.raises(BadInput, match="did you mean label_smoothing"):
        find_trick("label-smothing")
    with pytest.raises(BadInput, match="goldfold tricks lists them"):
        find_trick("xyzzyxyzzy")
    assert find_trick("mixup") is TRICKS["mixup"]


def test_a_described_switch_is_one_for_the_command_line(tmp_path: Path) -> None:
    import shlex

    competition = {"extends": str(shipped_configs() / "base.yaml"), **TINY}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(competition))
    for name in ("cutout", "one_cycle", "augmix_jsd", "rare_augmentation", "freeze_batch_norm"):
        line = next(text for text in describe(TRICKS[name]).splitlines() if text.startswith("on:"))
        config = load_config(tmp_path / "tiny.yaml", shlex.split(line.removeprefix("on:")))
        assert all(value_of(config, key) == value for key, value in TRICKS[name].on.items())


def test_the_listing_names_all_and_marks_those_without_a_switch() -> None:
    lines = {line.split()[0]: line for line in listing().splitlines() if line.startswith("  ")}
    assert set(lines) == set(TRICKS)
    assert all((" * " in line) == (not TRICKS[name].on) for name, line in lines.items())


def test_the_command_shows_lists_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tricks"]) == 0
    assert "label_smoothing" in capsys.readouterr().out
    assert main(["tricks", "mixup"]) == 0
    assert "mix.mixup=0.2" in capsys.readouterr().out
    assert main(["tricks", "mixupp"]) == 2
    assert "did you mean mixup" in capsys.readouterr().err
    assert main(["tricks", "--write", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page()


# --- cards -------------------------------------------------------------------------------------------------------------


def test_every_trick_has_a_card_and_every_card_a_trick() -> None:
    files = {path.stem for path in CARDS.glob("*.md")} - {"README"}
    assert files == {trick.card for trick in TRICKS.values()}


@every_card
def test_a_card_names_its_tricks_and_their_keys(card: str) -> None:
    text = text_of(card)
    members = [trick for trick in TRICKS.values() if trick.card == card]
    assert [trick.name for trick in members if f"`{trick.name}`" not in text] == []
    keys = {key for trick in members for key in trick.keys}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


@every_card
def test_a_cards_keys_are_keys(card: str) -> None:
    """What stands in backticks as a dotted key exists, so that a renamed key fails here."""
    sections = "|".join(Config.model_fields)
    named = re.findall(rf"`((?:{sections})\.[a-z0-9_.]+)(?:[:=][^`]*)?`", text_of(card))
    known = {".".join(key.split(".")[:depth]) for key in KEYS for depth in range(1, 5)}
    assert [key for key in named if key not in known and not key.endswith((".yaml", ".parquet"))] == []


@every_card
def test_a_card_says_what_when_default_and_source(card: str) -> None:
    text = text_of(card)
    for part in ("**Helps**", "**Hurts**", "**Default**"):
        if card == "phases" and part != "**Default**":
            continue  # each of its tricks says so by itself
        assert part in text, part
    assert re.search(r"\b(19|20)\d\d\b|no controlled study|Goldfold's own|[Cc]ommon practice|DDP", text), "a source"
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    assert 14 <= len(lines) <= (150 if card in ("phases", "schedules") else 48)
    assert [line for line in lines if len(line) > 150 and not line.startswith("|")] == []


@every_card
def test_a_cards_snippets_are_configurations_that_use_its_keys(card: str) -> None:
    parts = snippets(card)
    assert parts
    keys = {key for trick in TRICKS.values() if trick.card == card for key in trick.keys}
    named: set[str] = set()
    for snippet in parts:
        if "rounds" in snippet:
            found = {name for step in Pipeline.model_validate(snippet).rounds for name in step.model_fields_set}
            named |= {key for key in keys if key.removeprefix("rounds.") in found}
            continue
        config = config_from_dict(deep(TINY, snippet), card)
        try_augmenter(config.augment, 32, 40, 3 if config.input.channels == 1 else config.input.channels)
        named |= {key for key in keys if present(snippet, key)}
    members = [trick for trick in TRICKS.values() if trick.card == card]
    assert [trick.name for trick in members if not named & set(trick.keys)] == [], "no snippet shows these"


def deep(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        before = out.get(key)
        out[key] = deep(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return out


def present(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def test_the_card_of_presets_repeats_what_the_presets_say_of_themselves() -> None:
    text = text_of("presets")
    assert [name for name in PRESETS if not re.search(rf"^\| {name} \|", text, re.MULTILINE)] == []
    assert LABEL_SAFE.keys() == PRESETS.keys()


def test_the_card_of_phases_names_every_key_of_a_phase() -> None:
    rows = "\n".join(line.split("|")[1] for line in text_of("phases").splitlines() if line.startswith("|"))
    assert [name for name in Phase.model_fields if not re.search(rf"\b{name}\b", rows)] == []
    assert len(snippets("phases")) >= 5


def test_phases_of_the_cards_add_up_and_really_differ() -> None:
    for card in ("phases", "clean_epochs"):
        for snippet in snippets(card):
            config = config_from_dict(deep(TINY, snippet), card)
            assert sum(phase.epochs for phase in config.train.phases) == config.train.epochs
            assert len({phase.model_dump_json(exclude={"epochs"}) for phase in config.train.phases}) > 1
            for phase in config.train.phases:
                merged(config.mix, phase.mix, "mix")


# --- the table ---------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_command_writes() -> None:
    there = (CARDS / "README.md").read_text(encoding="utf-8")
    difference = "\n".join(
        difflib.unified_diff(there.splitlines(), page().splitlines(), "README.md", "page()", lineterm="")
    )
    assert there == page(), f"run: goldfold tricks --write docs/tricks/README.md\n{difference}"


def test_the_table_has_a_line_a_trick() -> None:
    lines = [line for line in table().splitlines() if line.startswith("| ")]
    named = [found.group(1) for line in lines if (found := re.search(r"\| `([a-z0-9_]+)`", line))]
    assert named == list(TRICKS)
    for name, line in zip(named, (line for line in lines if "`" in line), strict=True):
        assert f"]({TRICKS[name].card}.md)" in line
        assert line.count(" | ") == 5
    assert all(f"recipes/{name}.yaml" in page() for name in RECIPES)
