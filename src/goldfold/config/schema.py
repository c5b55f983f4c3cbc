"""Every key that a configuration may hold, with its type, default and meaning.

``configs/base.yaml`` shows the same keys annotated; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from goldfold.tasks import TaskName

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Scheme = Literal[
    "kfold", "stratified", "group", "stratified_group", "multilabel", "group_multilabel", "holdout", "column"
]
SubmissionShape = Literal["auto", "label", "probability", "columns", "string"]
Merge = Literal["mean", "gmean", "max"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Competition(Section):
    """The data of a competition and what is asked of it."""

    name: Name = Field(description="The competition's slug; names folds/<name>.csv")
    task: TaskName = Field(description="What is predicted")
    metric: str = Field(description="A metric's name, or module:function of your own")
    metric_direction: Literal["max", "min"] | None = Field(None, description="Needed for a metric of your own only")
    extra_metrics: tuple[str, ...] = Field((), description="Metrics reported beside the first")
    train_csv: str = Field(description="Labelled rows")
    test_csv: str | None = Field(None, description="Rows to predict")
    sample_submission: str | None = Field(None, description="The submission's shape")
    image_path: str = Field(description="A pattern over the CSV's columns, such as data/images/{id}.png")
    test_image_path: str | None = Field(None, description="The same for test rows; null: as image_path")
    id: str = Field("id", description="The id column")
    target: str | tuple[str, ...] = Field("label", description="The label column; a list of columns for multilabel")
    group: str | None = Field(None, description="A column whose values must not cross folds")
    classes: tuple[str, ...] | None = Field(None, description="The labels in order; null: found and sorted")
    threshold: Share = Field(0.5, description="Decision threshold of binary and multilabel answers")
    separator: str = Field(" ", min_length=1, description="Between the labels of a multilabel column or submission")
    submission: SubmissionShape = Field(
        "auto", description="Shape of the submission; auto: from task, metric and sample"
    )
    submission_columns: dict[str, str] | None = Field(None, description="Class to sample column, where names differ")


class Folds(Section):
    """How rows are dealt to folds. Stored once in folds/, then only read."""

    scheme: Scheme = Field("stratified", description="How rows are dealt")
    n: Annotated[int, Field(ge=2)] = Field(5, description="Number of folds")
    seed: int = Field(0, description="Seed of the deal")
    stratify: tuple[str, ...] = Field((), description="Columns to stratify on; empty: the target")
    bins: Annotated[int, Field(ge=2)] = Field(10, description="Quantile bins of a numeric column with many values")
    repeats: Positive = Field(1, description="Deal again with other seeds (repeated K-fold)")
    column: str | None = Field(
        None, description="CSV column: the fold number (column) or the validation flag (holdout)"
    )

    @model_validator(mode="after")
    def _column_is_named(self) -> Folds:
        if self.scheme in ("holdout", "column"):
            if self.column is None:
                raise ValueError(f"folds.column must name the CSV column for scheme '{self.scheme}'")
            if self.repeats != 1:
                raise ValueError(f"folds.repeats must be 1 for scheme '{self.scheme}'")
        return self


class Input(Section):
    """From a file to the pixels that the network sees."""

    size: Positive = Field(224, description="Side of the square network input, in pixels")
    resize: Literal["squash", "letterbox", "crop"] = Field("squash", description="How other shapes become square")
    interpolation: Literal["area", "linear", "cubic", "lanczos"] = Field("area", description="Resizing filter")
    channels: Literal[1, 3, 4] = Field(3, description="Channels decoded; 1 is expanded for a 3-channel network")
    range: Literal["full", "image"] = Field(
        "full", description="16-bit and float pixels: scale by type or by each image's range"
    )
    cache: bool = Field(True, description="Decode and resize once into a memory-mapped store")
    cache_size: Positive | None = Field(
        None, description="Side of stored images; null: size. Larger gives random crops room"
    )
    cache_dir: str | None = Field(None, description="Where the store lies; null: .cache/goldfold")


class Augment(Section):
    """Transforms of training images."""

    preset: Literal["none", "flips", "light", "medium", "heavy"] = Field(
        "medium", description="A named list of transforms"
    )
    train: tuple[dict[str, dict[str, Any] | None], ...] | None = Field(
        None, description="Your own list in albumentations' names; replaces the preset"
    )


class Mix(Section):
    """Mixing of two training images and their targets."""

    mixup: NotNegative = Field(0.0, description="Beta parameter of mixup; 0: off")
    cutmix: NotNegative = Field(0.0, description="Beta parameter of cutmix; 0: off")
    prob: Share = Field(1.0, description="Share of batches that are mixed")
    switch_prob: Share = Field(0.5, description="Share of cutmix where both are on")


class Model(Section):
    """A timm backbone with a linear head for the task."""

    backbone: str = Field("tf_efficientnet_b0", description="Any timm model name")
    pretrained: bool = Field(True, description="Start from pretrained weights: model.weights, else timm's hub")
    weights: str | None = Field(None, description="A .safetensors file of the backbone's weights (no internet needed)")
    drop_rate: Share = Field(0.0, description="Dropout before the head")
    drop_path_rate: Share = Field(0.0, description="Stochastic depth")
    freeze_stages: Annotated[int, Field(ge=0)] = Field(
        0, description="First groups of layers that stay as they are; 1: the stem"
    )
    mean: tuple[float, ...] | None = Field(None, description="Pixel mean in 0..1; null: the backbone's")
    std: tuple[float, ...] | None = Field(None, description="Pixel deviation in 0..1; null: the backbone's")


class Loss(Section):
    name: Literal["auto", "cross_entropy", "bce", "mse", "l1", "smooth_l1"] = Field(
        "auto", description="auto: the task's own"
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Label smoothing")


class Optim(Section):
    name: str = Field("adamw", description="Any timm optimizer name")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="Peak learning rate")
    head_lr_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="The head's learning rate over the backbone's"
    )
    weight_decay: NotNegative = Field(0.02, description="Weight decay; never on biases and norms")
    momentum: Share = Field(0.9, description="Momentum, for optimizers that have it")
    clip: NotNegative = Field(0.0, description="Largest gradient norm; 0: no clipping")


class Schedule(Section):
    name: Literal["cosine", "linear", "constant"] = Field("cosine", description="The rate after warm-up")
    warmup_epochs: NotNegative = Field(1.0, description="Epochs of linear warm-up; fractions allowed")
    min_factor: Share = Field(0.01, description="The last rate over the peak rate")


class Ema(Section):
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Decay of the averaged weights a step; 0: off")
    warmup: bool = Field(True, description="Shorter average in the first steps")


class EarlyStopping(Section):
    patience: Annotated[int, Field(ge=0)] = Field(0, description="Epochs without gain before stopping; 0: off")
    min_delta: NotNegative = Field(0.0, description="Smallest gain that counts")


class Train(Section):
    """The loop."""

    epochs: Positive = Field(5, description="Epochs")
    batch_size: Positive = Field(64, description="Images a micro-batch and process")
    accumulate: Positive = Field(1, description="Micro-batches an optimizer step")
    seed: int = Field(0, description="Seed of weights, order, augmentation and mixing")
    seeds: tuple[int, ...] = Field(
        (), description="Further seeds: each trains every fold again, predictions are averaged"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 or fp16 on a GPU, fp32 on CPU"
    )
    channels_last: bool = Field(True, description="Memory layout of convolutions")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Loader processes; null: by cores. Never changes results"
    )
    ema: Ema = Ema()
    keep: Literal["last", "best"] = Field(
        "last", description="Which epoch's weights; best picks on the validation fold, so its OOF is optimistic"
    )
    validate_every: Positive = Field(1, description="Epochs between validations; the last is always validated")
    early_stopping: EarlyStopping = EarlyStopping()

    @model_validator(mode="after")
    def _seeds_differ(self) -> Train:
        if len({self.seed, *self.seeds}) != 1 + len(self.seeds):
            raise ValueError("train.seeds repeats a seed (train.seed counts)")
        return self


class Balance(Section):
    """Against rare classes."""

    loss_weights: Literal["none", "inverse", "effective"] = Field("none", description="Class weights in the loss")
    sampling: Literal["none", "oversample"] = Field("none", description="Draw rows of rare classes more often")


class Teacher(Section):
    """Finished runs whose fold-k models label images for fold k's student."""

    runs: tuple[str, ...] = Field((), description="Names of finished runs with the same folds")
    test: Literal["none", "soft", "hard"] = Field("none", description="Pseudo-labels on test images")
    min_prob: Share = Field(0.0, description="Take a test image only when its largest class probability reaches this")
    test_weight: NotNegative = Field(1.0, description="Loss weight of a pseudo-labelled image")
    distill: Share = Field(0.0, description="Share of the teacher's probabilities in the targets of training images")

    @model_validator(mode="after")
    def _is_used(self) -> Teacher:
        if bool(self.runs) != (self.test != "none" or self.distill > 0):
            raise ValueError("teacher.runs needs teacher.test or teacher.distill, and they need teacher.runs")
        return self


class Tta(Section):
    """Views of each image at prediction."""

    views: Literal["none", "hflip", "flips", "d4"] | tuple[dict[str, dict[str, Any] | None], ...] = Field(
        "hflip", description="A preset, or ttach's transforms by name with arguments"
    )
    merge: Merge = Field("mean", description="How the views' probabilities meet")
    batch_size: Positive = Field(128, description="Images a batch at prediction")


class Tracking(Section):
    """metrics.jsonl is always written; W&B beside it when asked for."""

    wandb: bool = Field(False, description="Log to Weights & Biases")
    project: str | None = Field(None, description="W&B project; null: the competition's name")
    entity: str | None = Field(None, description="W&B entity")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online with a key, else offline")
    tags: tuple[str, ...] = Field((), description="W&B tags")


class Config(Section):
    """A whole experiment."""

    name: Name | None = Field(None, description="The run's name; null: the file's name")
    competition: Competition
    folds: Folds = Folds()
    input: Input = Input()
    augment: Augment = Augment()
    mix: Mix = Mix()
    model: Model = Model()
    loss: Loss = Loss()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train = Train()
    balance: Balance = Balance()
    teacher: Teacher = Teacher()
    tta: Tta = Tta()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _views_can_be_merged(self) -> Config:
        if self.competition.task == "regression" and self.tta.merge == "gmean":
            raise ValueError("tta.merge 'gmean' is for probabilities, and regression values may be negative; use mean")
        return self


BlendMethod = Literal["mean", "gmean", "rank_mean", "simplex", "greedy"]


class TrainRound(Section):
    """Trains every fold of an experiment."""

    kind: Literal["train"]
    experiment: str = Field(description="The experiment's YAML, relative to the pipeline's folder")
    name: Name | None = Field(None, description="The run's name; null: the experiment's")
    set: dict[str, Any] = Field(default_factory=dict, description="Dotted overrides of the experiment")


class PseudoLabelRound(TrainRound):
    """Trains a student on the labelled rows and on its teachers' labels of the test images."""

    kind: Literal["pseudo_label"]  # type: ignore[assignment]
    teachers: tuple[str, ...] = Field(min_length=1, description="Runs of earlier rounds")
    labels: Literal["soft", "hard"] = Field("soft", description="Probabilities or the most likely class")
    min_prob: Share = Field(0.0, description="Smallest confidence of an image that is taken")
    weight: NotNegative = Field(1.0, description="Loss weight of a taken image")


class DistillRound(TrainRound):
    """Trains a student towards its teachers' probabilities on the training rows."""

    kind: Literal["distill"]  # type: ignore[assignment]
    teachers: tuple[str, ...] = Field(min_length=1, description="Runs of earlier rounds")
    weight: Share = Field(0.5, description="Share of the teachers' probabilities in the targets")


class EnsembleRound(Section):
    """Blends runs, with weights fitted on out-of-fold predictions."""

    kind: Literal["ensemble"]
    name: Name
    members: tuple[str, ...] = Field(min_length=1, description="Runs of earlier rounds")
    method: BlendMethod = Field("simplex", description="How members are blended")


class SubmitRound(Section):
    """Writes and checks a submission."""

    kind: Literal["submit"]
    source: str = Field(description="A run or an ensemble of an earlier round")
    name: Name | None = Field(None, description="The submission's name; null: the source's")


Round = Annotated[
    TrainRound | PseudoLabelRound | DistillRound | EnsembleRound | SubmitRound, Field(discriminator="kind")
]


class Pipeline(Section):
    """Rounds in order."""

    name: Name | None = Field(None, description="The pipeline's name; null: the file's name")
    rounds: tuple[Round, ...] = Field(min_length=1)
