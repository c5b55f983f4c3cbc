"""Section D: optimisation."""

from __future__ import annotations

from typing import Any

from goldfold.tricks.mixing import EPOCHS
from goldfold.tricks.trick import Trick

OPTIMIZERS = (
    "SGD+momentum, RMSProp, Adagrad, Adadelta, Adam, AdamW, Adafactor, NovoGrad, LAMB, Lookahead, Ranger "
    "(lookahead_radam), and what else timm lists; betas, eps"
)
TWO = "Adam first, SGD fine-tune after"
NO_DECAY = "no weight decay on biases and norms"
RATES = "layer-wise learning rates; separate head rate"
SCALING = "linear LR scaling by batch size"
WARM_UP = "warm-up"
SCHEDULES = "step, multi-step, exponential, polynomial, plateau, cosine, cosine with restarts (SGDR), triangular cyclic, one-cycle"
FINDER = "LR finder: exponential ramp, steepest slope, plot"
ACCUMULATION = (
    "gradient accumulation, with the last partial window flushed; batch, accumulation or LR raised late in training"
)
CLIPPING = "gradient clipping, off by default"
PRECISION = "mixed precision: fp16 with loss scaling (T4), bf16"
SIZES = "progressive resizing; small images + big batch, then large images + small batch + low LR"
GPUS = "large batch over several GPUs"
SMOOTHING = "label smoothing: multiclass, and the binary form t(1−s)+s/2"
LOSSES = "focal, BCE-for-multiclass, soft-target CE"
PENALTIES = "L1, L2 penalties"
TRUNK = "frozen-trunk feature cache: the frozen stages run once over a set of views, only the tail trains"
AVERAGES = "EMA of weights; stochastic weight averaging; checkpoint soup over epochs"

KEEPS_RATE = "the rate stays as it is; each optimizer wants its own (goldfold lr-find)"


def _optimizer(name: str, title: str, source: str, default: str = "off (adamw)", word: str | None = None) -> Trick:
    return Trick(
        name=name,
        section="D",
        title=title,
        row=OPTIMIZERS,
        keys=("optim.name", "optim.lr", "optim.momentum", "optim.betas", "optim.eps", "optim.args"),
        card="optimizers",
        default=default,
        source=source,
        on={"optim.name": word or name},
        off={"optim.name": "adamw" if name != "adamw" else "sgd"},
        note=KEEPS_RATE,
    )


def _schedule(
    name: str,
    title: str,
    source: str,
    keys: tuple[str, ...],
    *,
    card: str = "schedules",
    default: str = "off (cosine)",
    on: dict[str, Any] | None = None,
    off: dict[str, Any] | None = None,
    note: str = "",
) -> Trick:
    return Trick(
        name=name,
        section="D",
        title=title,
        row=SCHEDULES,
        keys=("schedule.name", *(f"schedule.{key}" for key in keys)),
        card=card,
        default=default,
        source=source,
        on={"schedule.name": name} if on is None else on,
        off={"schedule.name": "constant", **(off or {})},
        note=note,
    )


OPTIMISATION: tuple[Trick, ...] = (
    _optimizer("sgd", "SGD with Nesterov momentum", "Sutskever et al. 2013"),
    _optimizer("rmsprop", "RMSProp", "Tieleman and Hinton 2012"),
    _optimizer("adagrad", "Adagrad", "Duchi et al. 2011"),
    _optimizer("adadelta", "Adadelta", "Zeiler 2012"),
    _optimizer("adam", "Adam", "Kingma and Ba 2015"),
    _optimizer("adamw", "AdamW", "Loshchilov and Hutter 2019", "on"),
    _optimizer("adafactor", "Adafactor", "Shazeer and Stern 2018"),
    _optimizer("novograd", "NovoGrad", "Ginsburg et al. 2019"),
    _optimizer("lamb", "LAMB", "You et al. 2020"),
    _optimizer("lookahead", "Lookahead around AdamW", "Zhang et al. 2019", word="lookahead_adamw"),
    _optimizer("ranger", "Ranger: Lookahead around RAdam", "Wright 2019; Liu et al. 2020", word="lookahead_radam"),
    Trick("adam_then_sgd", "D", "Adam, then SGD", TWO, ("train.phases",), "phases", "off", "Keskar and Socher 2017",
          note=EPOCHS),
    Trick("no_bias_decay", "D", "No decay of biases and norms", NO_DECAY, ("optim.decay_all", "optim.weight_decay"),
          "no_bias_decay", "on", "Jia et al. 2018; He et al. 2019",
          {"optim.decay_all": False}, {"optim.decay_all": True}),
    Trick("layer_decay", "D", "Layer-wise rates", RATES, ("optim.layer_decay",), "layer_decay", "off (1.0)",
          "Clark et al. 2020 (ELECTRA); Bao et al. 2022 (BEiT)", {"optim.layer_decay": 0.75}, {"optim.layer_decay": 1.0}),
    Trick("head_rate", "D", "A higher rate for the head", RATES, ("optim.head_lr_scale",), "head_rate", "off (1.0)",
          "Howard and Ruder 2018", {"optim.head_lr_scale": 10.0}, {"optim.head_lr_scale": 1.0}),
    Trick("linear_scaling", "D", "Linear scaling of the rate", SCALING, ("optim.lr_scaling", "optim.lr_batch"),
          "linear_scaling", "off (none)", "Goyal et al. 2017",
          {"optim.lr_scaling": "linear"}, {"optim.lr_scaling": "none"}),
    Trick("sqrt_scaling", "D", "Square-root scaling of the rate", SCALING, ("optim.lr_scaling", "optim.lr_batch"),
          "linear_scaling", "off (none)", "Krizhevsky 2014; You et al. 2020",
          {"optim.lr_scaling": "sqrt"}, {"optim.lr_scaling": "none"}),
    Trick("warmup", "D", "Warm-up", WARM_UP, ("schedule.warmup_epochs",), "warmup", "on (1 epoch)", "Goyal et al. 2017",
          {"schedule.warmup_epochs": 1.0}, {"schedule.warmup_epochs": 0.0}),
    _schedule("cosine", "Cosine", "Loshchilov and Hutter 2017", ("min_factor",), card="cosine", default="on"),
    _schedule("sgdr", "Cosine with restarts", "Loshchilov and Hutter 2017",
              ("cycle_epochs", "cycle_mult", "cycle_decay", "min_factor"), card="sgdr",
              on={"schedule.name": "cosine_restarts"}),
    _schedule("one_cycle", "One cycle", "Smith and Topin 2018",
              ("peak_at", "start_factor", "min_factor", "momentum_cycle", "warmup_epochs"), card="one_cycle",
              on={"schedule.name": "one_cycle", "schedule.warmup_epochs": 0.0, "schedule.momentum_cycle": [0.95, 0.85]},
              off={"schedule.momentum_cycle": None}),
    _schedule("triangular", "Triangular cycles", "Smith 2017",
              ("cycle_epochs", "cycle_decay", "start_factor", "momentum_cycle", "warmup_epochs"),
              on={"schedule.name": "triangular", "schedule.warmup_epochs": 0.0},
              off={"schedule.momentum_cycle": None}),
    _schedule("linear", "Linear", "Goyal et al. 2017; Li et al. 2020 (budgeted training)", ("min_factor",)),
    _schedule("polynomial", "Polynomial", "Liu et al. 2015 (ParseNet)", ("power", "min_factor"),
              on={"schedule.name": "polynomial", "schedule.power": 2.0}, off={"schedule.power": 1.0}),
    _schedule("step", "Step", "He et al. 2016", ("decay_epochs", "gamma"),
              note="schedule.decay_epochs (2) is for short trainings; about a third of the epochs is usual"),
    _schedule("multi_step", "Multi-step", "He et al. 2016", ("milestones", "gamma"), on={},
              off={"schedule.milestones": []},
              note="milestones depend on train.epochs: schedule.name=multi_step schedule.milestones=[3,4]"),
    _schedule("exponential", "Exponential", "Tan and Le 2019 (0.97 each 2.4 epochs)", ("decay_epochs", "gamma"),
              on={"schedule.name": "exponential", "schedule.gamma": 0.5}, off={"schedule.gamma": 0.1}),
    _schedule("plateau", "Plateau", "Krizhevsky et al. 2012; He et al. 2016", ("gamma", "patience", "threshold"),
              note="looks at validation scores, so the OOF score is a little optimistic"),
    Trick("lr_find", "D", "Learning-rate finder", FINDER, ("optim.lr",), "lr_find", "a command: goldfold lr-find",
          "Smith 2017", note="a command, not a setting: goldfold lr-find CONFIG"),
    Trick("accumulation", "D", "Gradient accumulation", ACCUMULATION, ("train.accumulate",), "accumulation", "off (1)",
          "common practice", {"train.accumulate": 4}, {"train.accumulate": 1}),
    Trick("late_accumulation", "D", "Larger steps late in training", ACCUMULATION, ("train.phases",), "phases", "off",
          "Smith et al. 2018 (Don't decay the learning rate, increase the batch size)", note=EPOCHS),
    Trick("clip", "D", "Clipping by norm", CLIPPING, ("optim.clip", "optim.clip_mode"), "clip", "off",
          "Pascanu et al. 2013", {"optim.clip": 1.0, "optim.clip_mode": "norm"}, {"optim.clip": 0.0, "optim.clip_mode": "norm"}),
    Trick("clip_value", "D", "Clipping by value", CLIPPING, ("optim.clip", "optim.clip_mode"), "clip", "off",
          "Mikolov 2012", {"optim.clip": 0.1, "optim.clip_mode": "value"}, {"optim.clip": 0.0, "optim.clip_mode": "norm"}),
    Trick("agc", "D", "Adaptive gradient clipping", CLIPPING, ("optim.clip", "optim.clip_mode"), "clip", "off",
          "Brock et al. 2021", {"optim.clip": 0.01, "optim.clip_mode": "agc"}, {"optim.clip": 0.0, "optim.clip_mode": "norm"}),
    Trick("bf16", "D", "bfloat16", PRECISION, ("train.precision",), "precision", "auto: bf16 or fp16 on a GPU, the faster of fp32 and bf16 on CPU",
          "Kalamkar et al. 2019", {"train.precision": "bf16"}, {"train.precision": "fp32"}),
    Trick("fp16", "D", "float16 with loss scaling", PRECISION, ("train.precision",), "precision",
          "auto: bf16 or fp16 on a GPU, the faster of fp32 and bf16 on CPU", "Micikevicius et al. 2018",
          {"train.precision": "fp16"}, {"train.precision": "fp32"}),
    Trick("progressive_resizing", "D", "Progressive resizing", SIZES, ("train.phases",), "phases", "off",
          "Howard 2018 (DAWNBench); Tan and Le 2021 (EfficientNetV2)", note=EPOCHS),
    Trick("small_then_large", "D", "Small images in large batches, then the reverse", SIZES, ("train.phases",), "phases",
          "off", "Howard 2018 (DAWNBench)", note=EPOCHS),
    Trick("multi_gpu", "D", "Several GPUs", GPUS, ("train.batch_size", "optim.lr_scaling"), "multi_gpu", "one process",
          "Goyal et al. 2017", note="a way to start it, not a setting: accelerate launch"),
    Trick("label_smoothing", "D", "Label smoothing", SMOOTHING, ("loss.smoothing",), "label_smoothing", "off",
          "Szegedy et al. 2016", {"loss.smoothing": 0.1}, {"loss.smoothing": 0.0}),
    Trick("focal", "D", "Focal loss", LOSSES, ("loss.name", "loss.gamma", "loss.alpha"), "focal", "off (auto)",
          "Lin et al. 2017", {"loss.name": "focal"}, {"loss.name": "auto"}),
    Trick("bce", "D", "BCE for multiclass", LOSSES, ("loss.name",), "bce", "off (auto: cross entropy)",
          "Wightman et al. 2021 (ResNet strikes back)", {"loss.name": "bce"}, {"loss.name": "auto"}),
    Trick("soft_targets", "D", "Cross entropy on soft targets", LOSSES, ("loss.name",), "soft_targets",
          "on: every loss takes soft targets", "Hinton et al. 2015",
          note="no switch: mixing, smoothing and teachers make targets soft, and every loss takes them"),
    Trick("l1_penalty", "D", "L1 penalty", PENALTIES, ("optim.l1",), "penalties", "off", "Tibshirani 1996",
          {"optim.l1": 1e-6}, {"optim.l1": 0.0}),
    Trick("l2_penalty", "D", "L2 penalty", PENALTIES, ("optim.l2",), "penalties", "off", "Krogh and Hertz 1992",
          {"optim.l2": 1e-4}, {"optim.l2": 0.0}),
    Trick("cached_trunk", "D", "Frozen trunk, stored features", TRUNK, ("model.freeze.cache", "model.freeze.cache_views"),
          "cached_trunk", "off", "Goldfold's own; measured on its card",
          {"model.freeze.cache": True, "model.freeze.stages": -2, "augment.preset": "none"},
          {"model.freeze.cache": False}),
    Trick("ema", "D", "EMA of weights", AVERAGES, ("train.ema.decay", "train.ema.warmup"), "ema", "off",
          "Polyak and Juditsky 1992; Tarvainen and Valpola 2017", {"train.ema.decay": 0.99}, {"train.ema.decay": 0.0}),
    Trick("swa", "D", "Stochastic weight averaging", AVERAGES, ("train.swa.epochs", "train.swa.lr_factor"), "swa", "off",
          "Izmailov et al. 2018", {"train.swa.epochs": 2}, {"train.swa.epochs": 0}),
    Trick("soup", "D", "Soup of epochs", AVERAGES, ("train.soup.epochs", "train.soup.method"), "soup", "off",
          "Wortsman et al. 2022; Vaswani et al. 2017", {"train.soup.epochs": 3, "train.soup.method": "uniform"},
          {"train.soup.epochs": 0, "train.soup.method": "uniform"}),
    Trick("greedy_soup", "D", "Greedy soup of epochs", AVERAGES, ("train.soup.epochs", "train.soup.method"), "soup", "off",
          "Wortsman et al. 2022", {"train.soup.epochs": 3, "train.soup.method": "greedy"},
          {"train.soup.epochs": 0, "train.soup.method": "uniform"}),
)  # fmt: skip
