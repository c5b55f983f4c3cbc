"""Sections about the network and its training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from goldfold.config.sections import Above, NotNegative, Positive, Section, Share
from goldfold.tasks import TaskName

Activation = Literal["relu", "leaky_relu", "prelu", "elu", "silu", "gelu"]
Stages = Annotated[int, Field()] | Literal["all"]


class Head(Section):
    """From pooled features to logits."""

    kind: Literal["linear", "arcface"] = Field(
        "linear", description="Last layer; arcface: scaled cosines (loss.margin)"
    )
    hidden: tuple[Positive, ...] = Field((), description="Widths of further hidden layers")
    activation: Activation = Field("relu", description="Of the hidden layers")
    dropouts: Positive = Field(1, description="Multi-sample dropout: logits averaged over so many dropout masks")
    scale: Above = Field(30.0, description="Scale of arcface's cosines")
    init: Literal["default", "kaiming"] = Field("default", description="Of new linear layers; default: PyTorch's own")


class Freeze(Section):
    """What of the backbone stays as it is."""

    stages: Stages = Field(
        0,
        description="First groups of layers that stay; 1: the stem; -2: all but the last two; all: only the head trains",
    )
    batch_norm: bool = Field(False, description="Batch-norm statistics and scales stay in every layer")
    cache: bool = Field(False, description="Run the frozen stages once over cache_views, train the rest from the store")
    cache_views: Literal["none", "flip", "flips", "d4"] | Positive = Field(
        "flips", description="Views of each image in that store, or how many augment draws; an epoch takes one an image"
    )


class Metadata(Section):
    """Columns of the CSV, joined to the image's features."""

    numeric: tuple[str, ...] = Field((), description="Columns of numbers; scaled on the training rows")
    categorical: tuple[str, ...] = Field((), description="Columns of categories; each gets an embedding")
    embedding: Positive | None = Field(None, description="Width of an embedding; null: by the number of categories")
    hidden: tuple[Positive, ...] = Field((64,), description="Widths of the branch's layers")
    drop_rate: Share = Field(0.1, description="Dropout in the branch")


class Model(Section):
    """A backbone with a head for the task."""

    backbone: str = Field("tf_efficientnet_b0", description="Any timm model name, or torchvision/<name>")
    pretrained: bool = Field(True, description="Start from pretrained weights: model.weights, else the hub")
    weights: str | None = Field(None, description="A .safetensors file of the backbone's weights (no internet needed)")
    drop_rate: Share = Field(0.0, description="Dropout before the head")
    drop_path_rate: Share = Field(0.0, description="Stochastic depth")
    pool: Literal["avg", "max", "concat", "gem"] | None = Field(
        None, description="Pooling of the last feature map; null: the backbone's own"
    )
    reduce: Positive | None = Field(None, description="Channels of a 1x1 convolution before pooling; null: none")
    head: Head = Head()
    activation: Activation | None = Field(None, description="Activation put in place of the backbone's; null: its own")
    output_stride: Literal[8, 16] | None = Field(None, description="Dilated last stages for a finer map; null: 32")
    stem_kernel: Literal[1, 3, 5, 7, 9, 11] | None = Field(
        None, description="Side of the first convolution's kernel; null: its own"
    )
    zero_init_last: bool = Field(
        False, description="Zero the last scale of each residual branch, from random weights only"
    )
    freeze: Freeze = Freeze()
    metadata: Metadata = Metadata()
    mean: tuple[float, ...] | None = Field(None, description="Pixel mean in 0..1; null: the backbone's")
    std: tuple[float, ...] | None = Field(None, description="Pixel deviation in 0..1; null: the backbone's")


class Auxiliary(Section):
    """A further label column that the network learns beside the target, and forgets at inference."""

    column: str = Field(description="A column of the train CSV; rows without a value do not count")
    task: TaskName = Field("multiclass", description="What kind of label it holds")
    weight: Above = Field(0.3, description="Weight of its loss")


class Loss(Section):
    """What is minimised."""

    name: Literal["auto", "cross_entropy", "bce", "focal", "mse", "l1", "smooth_l1"] = Field(
        "auto", description="auto: the task's own"
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Label smoothing")
    gamma: NotNegative = Field(2.0, description="Focusing of the focal loss")
    alpha: Share | None = Field(
        None, description="Weight of positives in a focal loss of yes-or-no targets; null: none"
    )
    margin: NotNegative = Field(0.0, description="Angular margin in radians; model.head.kind arcface only")
    jsd: NotNegative = Field(0.0, description="Weight of AugMix's consistency loss; 0: off; needs AugMix in augment")
    auxiliary: tuple[Auxiliary, ...] = Field((), description="Further label columns, each with its own weight")


class Optim(Section):
    """The optimizer."""

    name: str = Field("adamw", description="Any timm optimizer name; lookahead_ before it wraps it")
    lr: Above = Field(1e-3, description="Peak learning rate")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="Scale lr by the effective batch over lr_batch"
    )
    lr_batch: Positive = Field(256, description="Batch that lr is meant for, where it is scaled")
    head_lr_scale: Above = Field(1.0, description="The head's learning rate over the backbone's")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Learning rate of each group of layers over the next one's"
    )
    weight_decay: NotNegative = Field(0.02, description="Weight decay")
    decay_all: bool = Field(False, description="Weight decay on biases and norms too")
    momentum: Share = Field(0.9, description="Momentum, for optimizers that have it")
    betas: tuple[float, ...] | None = Field(None, description="Of Adam and its kin; null: the optimizer's own")
    eps: Above | None = Field(None, description="Term in the denominator; null: the optimizer's own")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments by the optimizer's own names")
    clip: NotNegative = Field(0.0, description="Gradient clipping; 0: off")
    clip_mode: Literal["norm", "value", "agc"] = Field(
        "norm", description="Largest norm, largest value, or adaptive (Brock et al. 2021)"
    )
    l1: NotNegative = Field(0.0, description="Weight of an L1 penalty")
    l2: NotNegative = Field(0.0, description="Weight of an L2 penalty, in the gradient (weight_decay may be decoupled)")


class Schedule(Section):
    """The learning rate over a run."""

    name: Literal[
        "constant", "linear", "cosine", "cosine_restarts", "polynomial", "step", "multi_step", "exponential",
        "plateau", "triangular", "one_cycle",
    ] = Field("cosine", description="The rate after warm-up")  # fmt: skip
    warmup_epochs: NotNegative = Field(1.0, description="Epochs of linear warm-up; fractions allowed")
    min_factor: Share = Field(0.01, description="The least rate over the peak rate")
    power: Above = Field(1.0, description="Of polynomial")
    decay_epochs: Above = Field(2.0, description="Epochs that multiply the rate by gamma (step, exponential)")
    milestones: tuple[NotNegative, ...] = Field(
        (), description="Epochs at which gamma multiplies the rate (multi_step)"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Factor of step, multi_step, exponential, plateau"
    )
    patience: Annotated[int, Field(ge=0)] = Field(2, description="Validations without gain that plateau bears")
    threshold: NotNegative = Field(0.0, description="Smallest gain that plateau counts")
    cycle_epochs: Above = Field(2.0, description="First cycle (cosine_restarts; triangular: up and down)")
    cycle_mult: Annotated[float, Field(ge=1)] = Field(1.0, description="Each cycle's length over the one before")
    cycle_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Each cycle's peak over the one before")
    peak_at: Annotated[float, Field(gt=0, lt=1)] = Field(0.25, description="Share of one_cycle before its peak")
    start_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.04, description="First rate over the peak rate (one_cycle, triangular)"
    )
    momentum_cycle: tuple[Share, Share] | None = Field(
        None, description="Momentum (or first beta) at the lowest and at the peak rate; null: fixed"
    )

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if self.name in ("one_cycle", "triangular") and self.warmup_epochs:
            raise ValueError(f"schedule.name '{self.name}' warms up by itself; set schedule.warmup_epochs to 0")
        if self.name == "multi_step" and (not self.milestones or list(self.milestones) != sorted(set(self.milestones))):
            raise ValueError("schedule.name 'multi_step' needs schedule.milestones, rising, such as [3, 6]")
        if self.name != "multi_step" and self.milestones:
            raise ValueError(f"schedule.milestones are for multi_step, and schedule.name is '{self.name}'")
        if self.momentum_cycle is not None and self.name not in ("one_cycle", "triangular"):
            raise ValueError("schedule.momentum_cycle is for one_cycle and triangular")
        return self


class Ema(Section):
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Decay of the averaged weights a step; 0: off")
    warmup: bool = Field(True, description="Shorter average in the first steps")


class Swa(Section):
    """Stochastic weight averaging (Izmailov et al. 2018)."""

    epochs: Annotated[int, Field(ge=0)] = Field(0, description="Last epochs whose weights are averaged; 0: off")
    lr_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Constant rate of those epochs over the peak rate"
    )


class Soup(Section):
    """Average of the weights of several epochs (Wortsman et al. 2022)."""

    epochs: Annotated[int, Field(ge=0)] = Field(0, description="Last epochs that may go in; 0: off")
    method: Literal["uniform", "greedy"] = Field(
        "uniform", description="greedy adds an epoch when validation gains, so its OOF is optimistic"
    )


class Prune(Section):
    """Global magnitude pruning (Han et al. 2015): the smallest weights are zero from an epoch on."""

    amount: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Share of the weights; 0: off")
    after: Annotated[int, Field(ge=0)] = Field(1, description="Epochs before it; the rest is fine-tuning")


class EarlyStopping(Section):
    patience: Annotated[int, Field(ge=0)] = Field(
        0, description="Validations without gain after which it stops; 0: off"
    )
    min_delta: NotNegative = Field(0.0, description="Smallest gain that counts, for keep too")


class Phase(Section):
    """A stretch of epochs and what differs in it; null: as in the experiment."""

    epochs: Positive = Field(description="Epochs of this phase")
    size: Positive | None = Field(None, description="input.size")
    batch_size: Positive | None = Field(None, description="train.batch_size")
    accumulate: Positive | None = Field(None, description="train.accumulate")
    lr: Above | None = Field(None, description="optim.lr")
    optimizer: str | dict[str, Any] | None = Field(None, description="optim.name, or several keys of optim")
    augment: dict[str, Any] | None = Field(None, description="Keys of augment")
    mix: dict[str, Any] | None = Field(None, description="Keys of mix")
    frozen: Stages | None = Field(None, description="model.freeze.stages")
    schedule: Literal["continue", "restart"] = Field(
        "continue", description="Go on along the schedule, or begin it anew over this phase and those that continue it"
    )
    state: Literal["keep", "reset"] | None = Field(
        None, description="The optimizer's state; null: kept, and reset where the optimizer changes"
    )


class Train(Section):
    """The loop."""

    epochs: Positive = Field(5, description="Epochs")
    batch_size: Positive = Field(64, description="Images a micro-batch and process")
    accumulate: Positive = Field(1, description="Micro-batches an optimizer step")
    phases: tuple[Phase, ...] = Field((), description="Stretches of epochs with settings of their own")
    seed: int = Field(0, description="Seed of weights, order, augmentation and mixing")
    seeds: tuple[int, ...] = Field(
        (), description="Further seeds: each trains every fold again, predictions are averaged"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 or fp16 on a GPU; on CPU fp32 or bf16, whichever trains faster here"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto", description="Memory layout of convolutions; auto: the one that is faster here"
    )
    compile: bool | Literal["auto"] = Field(
        False, description="torch.compile for training steps; auto: where it is measured to pay in this run"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Loader processes; null: by cores. Never changes results"
    )
    ema: Ema = Ema()
    swa: Swa = Swa()
    soup: Soup = Soup()
    prune: Prune = Prune()
    keep: Literal["last", "best"] = Field(
        "last", description="Which epoch's weights; best picks on the validation fold, so its OOF is optimistic"
    )
    validate_every: Positive = Field(1, description="Epochs between validations; the last is always validated")
    early_stopping: EarlyStopping = EarlyStopping()

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if len({self.seed, *self.seeds}) != 1 + len(self.seeds):
            raise ValueError("train.seeds repeats a seed (train.seed counts)")
        total = sum(phase.epochs for phase in self.phases)
        if self.phases and total != self.epochs:
            raise ValueError(
                f"train.phases have {total} epochs in all and train.epochs is {self.epochs}; make them equal"
            )
        averages = [name for name in ("swa", "soup") if getattr(self, name).epochs]
        for name in averages:
            if getattr(self, name).epochs > self.epochs:
                raise ValueError(f"train.{name}.epochs is more than train.epochs ({self.epochs})")
            if self.keep == "best":
                raise ValueError(f"train.{name} averages epochs and train.keep=best takes one; set train.keep to last")
            if self.early_stopping.patience:
                raise ValueError(f"train.{name} needs the last epochs; set train.early_stopping.patience to 0")
            if self.ema.decay:
                raise ValueError(f"train.{name} and train.ema both average the weights; turn one off")
        if len(averages) > 1:
            raise ValueError("train.swa and train.soup both average the last epochs; turn one off")
        if self.prune.amount and self.prune.after >= self.epochs:
            raise ValueError("train.prune.after leaves no epoch for fine-tuning; make it less than train.epochs")
        return self
