"""Sections about the data, and what an experiment reports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from goldfold.tasks import TaskName

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
Scheme = Literal[
    "kfold", "stratified", "group", "stratified_group", "multilabel", "group_multilabel", "holdout", "column"
]
SubmissionShape = Literal["auto", "label", "probability", "columns", "string"]
Merge = Literal["mean", "gmean", "max"]
Colour = Literal["rgb", "hls", "hsv", "luv", "xyz", "ycrcb", "lab", "yuv"]
Views = Literal["flip", "flips", "d4", "five-crop", "ten-crop", "scales"]
Preset = Literal["none", "flips", "light", "medium", "heavy", "medical", "satellite"]
Transforms = tuple[dict[str, dict[str, Any] | None], ...]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class External(Section):
    """Labelled images of another data set, in every fold's training and in no validation."""

    csv: str = Field(description="Labelled rows, with the competition's id and target columns")
    image_path: str = Field(description="A pattern over that CSV's columns")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="Loss weight of its rows; the competition's have 1")


class Unlabelled(Section):
    """Images without labels, for pseudo-labels beside the test images."""

    csv: str = Field(description="Rows with the competition's id column")
    image_path: str = Field(description="A pattern over that CSV's columns")


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
    external: tuple[External, ...] = Field((), description="Further labelled images, for training only")
    unlabelled: tuple[Unlabelled, ...] = Field((), description="Further images without labels, for pseudo-labels")
    threshold: Share = Field(0.5, description="Decision threshold of binary and multilabel answers")
    separator: str = Field(" ", min_length=1, description="Between the labels of a multilabel column or submission")
    submission: SubmissionShape = Field(
        "auto", description="Shape of the submission; auto: from task, metric and sample"
    )
    submission_columns: dict[str, str] | None = Field(None, description="Class to sample column, where names differ")
    hours: Annotated[float, Field(gt=0, le=24)] | None = Field(
        None, description="What the competition lets a kernel take, in hours; null: 9"
    )


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
    colour: Colour = Field("rgb", description="Colour space that the network sees, in every stage")
    local_mean: Literal["none", "subtract", "hsv_blur"] = Field(
        "none", description="Ben Graham's local contrast, in every stage: minus the local mean, or blurred HSV"
    )
    normalise: Literal["fixed", "image", "image_per_channel"] = Field(
        "fixed", description="Mean and deviation: model.mean and std, each image's own, or each image's channels' own"
    )
    cache: bool = Field(True, description="Decode and resize once into a store on disk")
    cache_size: Positive | None = Field(
        None, description="Side of stored images; null: size. Larger gives random crops room"
    )
    cache_dir: str | None = Field(None, description="Where the store lies; null: .cache/goldfold")

    @model_validator(mode="after")
    def _colours_are_three(self) -> Input:
        for key, off in (("colour", "rgb"), ("local_mean", "none")):
            if getattr(self, key) != off and self.channels != 3:
                raise ValueError(f"input.{key} '{getattr(self, key)}' needs input.channels 3")
        if self.colour != "rgb" and self.local_mean == "hsv_blur":
            raise ValueError("input.local_mean 'hsv_blur' gives RGB of its own; set input.colour to rgb")
        return self


class Erase(Section):
    """Random erasing (Zhong et al. 2020), on the device, after mixing."""

    prob: Share = Field(0.0, description="Share of images with erased boxes; 0: off")
    mode: Literal["const", "rand", "pixel"] = Field("pixel", description="Fill: zeros, a colour, or noise a pixel")
    area: tuple[Share, Share] = Field((0.02, 0.33), description="Smallest and largest share of the image")
    count: Positive = Field(1, description="Most boxes an image")


class Augment(Section):
    """Transforms of training images."""

    preset: Preset = Field("medium", description="A named list of transforms")
    train: Transforms | None = Field(None, description="Your own list in albumentations' names; replaces the preset")
    add: Transforms = Field((), description="Transforms after the preset or the list")
    on: Literal["host", "device"] = Field(
        "host", description="Where transforms run: loader processes, or the GPU (host where cores are many)"
    )
    erase: Erase = Erase()


class Mix(Section):
    """Mixing of two training images and their targets."""

    mixup: NotNegative = Field(0.0, description="Beta parameter of mixup; 0: off")
    cutmix: NotNegative = Field(0.0, description="Beta parameter of cutmix; 0: off")
    prob: Share = Field(1.0, description="Share of batches that are mixed")
    switch_prob: Share = Field(0.5, description="Share of cutmix where both are on")


class Balance(Section):
    """Against rare classes."""

    loss_weights: Literal["none", "inverse", "effective"] = Field("none", description="Class weights in the loss")
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(0.999, description="Of the effective number of samples")
    sampling: Literal["none", "oversample", "undersample"] = Field(
        "none", description="Draw rows of rare classes more often, or only as many of each class as the rarest has"
    )
    rare_preset: Preset | None = Field(None, description="Another augmentation for the rows of rare classes")
    rare_below: Share = Field(0.5, description="A class is rare below this share of the largest class's rows")


class Pseudo(Section):
    """Labels that the fold's teachers give to unlabelled images (Lee 2013)."""

    labels: Literal["none", "soft", "hard"] = Field("none", description="Probabilities, or the most likely class")
    images: Literal["all", "test", "unlabelled"] = Field(
        "all", description="Both, the competition's test images, or its unlabelled ones"
    )
    min_prob: Share | dict[str, Share] = Field(
        0.0, description="Smallest confidence of an image that is taken, or one a class"
    )
    top_k: Positive | None = Field(None, description="Most images a class, the surest first; null: all")
    margin: NotNegative | None = Field(
        None, description="Largest disagreement between the teachers' members; null: any"
    )
    power: Above = Field(1.0, description="Soft probabilities to this power, rows summing to 1 again; above 1 sharpens")
    trim: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="Soft probabilities below it become 0, those above 1 minus it become 1"
    )
    weight: Above = Field(1.0, description="Loss weight of a taken image")
    weighting: Literal["equal", "confidence"] = Field(
        "equal", description="confidence: times the probability of the likeliest class"
    )
    sampling_prob: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of an epoch's rows that are taken images; null: all of them, on top of the labelled"
    )
    cool_down: Annotated[int, Field(ge=0)] = Field(0, description="Last epochs without them")


class Distill(Section):
    """Training towards the probabilities of the fold's teachers (Hinton et al. 2015)."""

    weight: Share = Field(0.0, description="Share of the teachers' loss; the rest is the labels' own")
    how: Literal["stored", "online", "cross_fitted"] = Field(
        "stored", description="Probabilities averaged over views, of the batch as augmented, or of inner folds"
    )
    temperature: Above = Field(1.0, description="Softens both sides; the loss is scaled by its square")
    features: NotNegative = Field(0.0, description="Weight of matching the teacher's pooled features; online only")
    inner: Annotated[int, Field(ge=2)] = Field(3, description="Inner folds of cross_fitted")


class Teacher(Section):
    """Finished runs and ensembles whose fold-k members label images for fold k's student."""

    runs: tuple[str, ...] = Field((), description="Names of finished runs or ensembles with the same folds")
    leaky: bool = Field(
        False, description="Teachers of all folds label for every student: OOF scores are inflated and marked so"
    )
    pseudo: Pseudo = Pseudo()
    distill: Distill = Distill()

    @model_validator(mode="after")
    def _are_named_once(self) -> Teacher:
        twice = [name for name in dict.fromkeys(self.runs) if self.runs.count(name) > 1]
        if twice:
            raise ValueError(f"teacher.runs names '{twice[0]}' twice, which would count double; name it once")
        return self

    @model_validator(mode="after")
    def _is_used(self) -> Teacher:
        if bool(self.runs) != (self.pseudo.labels != "none" or self.distill.weight > 0 or self.distill.features > 0):
            raise ValueError(
                "teacher.runs needs teacher.pseudo.labels or teacher.distill.weight, and they need teacher.runs"
            )
        return self


class Tta(Section):
    """Views of each image at prediction."""

    views: Literal["none", Views, "auto"] | Transforms = Field(
        "flip", description="A preset, ttach's transforms by name with arguments, or chosen on out-of-fold rows (auto)"
    )
    merge: Merge = Field("mean", description="How the views' probabilities meet")
    size: Positive | None = Field(None, description="Side of the images at prediction, in pixels; null: input.size")
    candidates: Views | Transforms = Field("d4", description="What auto chooses from, beside the picture as it is")
    max_views: Positive = Field(8, description="Most views that auto takes")
    min_gain: NotNegative = Field(1e-6, description="Smallest gain in the metric for which auto takes a view")
    batch_size: Positive = Field(128, description="Most images at once at prediction; halved where memory is full")


class Tracking(Section):
    """metrics.jsonl is always written; W&B beside it when asked for."""

    wandb: bool = Field(False, description="Log to Weights & Biases")
    project: str | None = Field(None, description="W&B project; null: the competition's name")
    entity: str | None = Field(None, description="W&B entity")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online with a key, else offline")
    tags: tuple[str, ...] = Field((), description="W&B tags")
    mistakes: Annotated[int, Field(ge=0)] = Field(
        16, description="Images of the worst out-of-fold mistakes that are sent to W&B; 0: none leave this machine"
    )
