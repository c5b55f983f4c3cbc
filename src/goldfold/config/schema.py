"""Every key that a configuration may hold, with its type, default and meaning.

``configs/base.yaml`` shows the same keys annotated; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from goldfold.config.consistency import tricks_fit
from goldfold.config.sections import (
    Augment,
    Balance,
    Competition,
    Distill,
    Erase,
    External,
    Folds,
    Input,
    Mix,
    Name,
    Positive,
    Pseudo,
    Section,
    Share,
    Teacher,
    Tracking,
    Tta,
    Unlabelled,
)
from goldfold.config.training import (
    Auxiliary,
    Ema,
    Freeze,
    Head,
    Loss,
    Metadata,
    Model,
    Optim,
    Phase,
    Prune,
    Schedule,
    Soup,
    Swa,
    Train,
)

__all__ = [
    "Augment", "Auxiliary", "Balance", "BlendMethod", "CalibrationMethod", "Competition", "Config", "DecisionMethod", "Distill", "DistillRound", "Ema", "EnsembleRound",
    "Erase", "External", "Folds", "Freeze", "Head", "Input", "Loss", "Metadata", "Mix", "Model", "Optim", "Phase",
    "Pipeline", "Prune", "Pseudo", "PseudoLabelRound", "Round", "Schedule", "Section", "Soup", "SubmitRound", "Swa", "Teacher",
    "Tracking", "Train", "TrainRound", "Tta", "Unlabelled",
]  # fmt: skip


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

    @model_validator(mode="after")
    def _tricks_fit(self) -> Config:
        tricks_fit(self)
        return self


BlendMethod = Literal["mean", "gmean", "rank_mean", "simplex", "greedy", "stacking"]
CalibrationMethod = Literal["none", "temperature", "class_temperature"]
DecisionMethod = Literal["fixed", "fitted"]


class TrainRound(Section):
    """Trains every fold of an experiment."""

    kind: Literal["train"]
    experiment: str = Field(description="The experiment's YAML, relative to the pipeline's folder")
    name: Name | None = Field(None, description="The run's name; null: the experiment's")
    set: dict[str, Any] = Field(default_factory=dict, description="Dotted overrides of the experiment")


class PseudoLabelRound(TrainRound, Pseudo):
    """Trains a student on the labelled rows and on its teachers' labels of unlabelled images; keys of teacher.pseudo, of
    which those that are left out stay as the experiment has them."""

    kind: Literal["pseudo_label"]  # type: ignore[assignment]
    teachers: tuple[str, ...] = Field(min_length=1, description="Runs or ensembles of earlier rounds")
    labels: Literal["soft", "hard"] = Field(  # type: ignore[assignment]
        "soft", description="Probabilities or the most likely class; left out: the experiment's, else soft"
    )
    leaky: bool = Field(False, description="Teachers of all folds: OOF scores are inflated, and marked so")


class DistillRound(TrainRound, Distill):
    """Trains a student towards its teachers' probabilities on the training rows; keys of teacher.distill, of which
    those that are left out stay as the experiment has them."""

    kind: Literal["distill"]  # type: ignore[assignment]
    teachers: tuple[str, ...] = Field(min_length=1, description="Runs or ensembles of earlier rounds")
    weight: Share = Field(
        0.5,
        description="Share of the teachers' loss; the rest is the labels' own; left out: the experiment's, else 0.5",
    )
    leaky: bool = Field(False, description="Teachers of all folds: OOF scores are inflated, and marked so")


class EnsembleRound(Section):
    """Blends runs, with weights fitted on out-of-fold predictions."""

    kind: Literal["ensemble"]
    name: Name
    members: tuple[str, ...] = Field(min_length=1, description="Runs of earlier rounds")
    method: BlendMethod = Field("simplex", description="How members are blended")
    bags: Positive | None = Field(None, description="Bags of greedy; null: 10 with 8 members or more, else 1")
    calibration: CalibrationMethod = Field("none", description="Temperatures fitted to the blend's probabilities")
    decisions: DecisionMethod = Field("fixed", description="fitted: thresholds, cut points or class multipliers")

    @model_validator(mode="after")
    def _bags_are_of_greedy(self) -> EnsembleRound:
        if self.bags is not None and self.method != "greedy":
            raise ValueError(f"bags are for method 'greedy', and would do nothing with '{self.method}'; remove them")
        if (self.bags or 1) > 1 and len(self.members) < 4:
            raise ValueError(f"bags hold half of the members, and of {len(self.members)} there is nothing to select")
        return self


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
