"""Where things lie. The only room that knows Kaggle's folders from a local checkout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

# Elsewhere only for rehearsals of a Kaggle notebook.
KAGGLE_INPUT = Path(os.environ.get("GOLDFOLD_INPUT") or "/kaggle/input")
KAGGLE_WORKING = Path(os.environ.get("GOLDFOLD_WORKING") or "/kaggle/working")


def on_kaggle() -> bool:
    return KAGGLE_WORKING.is_dir()


def shipped_configs() -> Path:
    """The folder of configurations that came with Goldfold: in a checkout or inside a wheel."""
    packaged = Path(str(resources.files("goldfold"))) / "_configs"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def find_input(root: Path, name: str, path: str) -> Path:
    """An input file named in a configuration: under ``root``, or in one of Kaggle's three input layouts.

    ``name`` is the competition's slug; ``data/<slug>/train.csv`` is looked for as ``train.csv`` in Kaggle's folders.
    """
    local = root / path
    if local.exists() or not KAGGLE_INPUT.is_dir():
        return local
    inside = path.removeprefix("data/").removeprefix(f"{name}/")
    owners = sorted((KAGGLE_INPUT / "datasets").glob(f"*/{name}"))
    for folder in (KAGGLE_INPUT / "competitions" / name, *owners, KAGGLE_INPUT / name):
        # A pattern such as images/{id}.png is found by its folder.
        fixed = inside.split("{", 1)[0]
        if (folder / fixed).exists():
            return folder / inside
    return local


def environment_dir(root: Path) -> Path:
    """Where the decoded cache goes: Kaggle saves all of its working folder as output, so not there."""
    return KAGGLE_WORKING.parent / "temp" if on_kaggle() else root / ".cache"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run (``runs/<run>``)."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def cv(self) -> Path:
        return self.folder / "cv.json"

    @property
    def oof(self) -> Path:
        return self.folder / "oof.parquet"

    @property
    def test(self) -> Path:
        return self.folder / "test.parquet"

    @property
    def views(self) -> Path:
        return self.folder / "views.json"

    def fold(self, fold: int, seed: int | None = None) -> FoldPaths:
        """``seed`` is given for the extra seeds of a run only; the first seed's folder is plain ``fold<k>``."""
        return FoldPaths(self.folder / (f"fold{fold}" if seed is None else f"fold{fold}-seed{seed}"))


@dataclass(frozen=True)
class FoldPaths:
    """The files of one trained fold (``runs/<run>/fold<k>[-seed<s>]``)."""

    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.folder / "last"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.json"

    @property
    def oof(self) -> Path:
        return self.folder / "oof.parquet"

    @property
    def test(self) -> Path:
        return self.folder / "test.parquet"

    @property
    def views(self) -> Path:
        return self.folder / "views.parquet"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.parquet"

    @property
    def labels_record(self) -> Path:
        return self.folder / "labels.json"

    @property
    def inner(self) -> Path:
        return self.folder / "inner"

    @property
    def done(self) -> Path:
        return self.folder / "DONE"


@dataclass(frozen=True)
class Workspace:
    """A project folder; every artefact has its place in it."""

    root: Path
    runs: str = "runs"
    """The folder of the runs; an ablation keeps its own apart."""

    def run(self, name: str) -> RunPaths:
        return RunPaths(self.root / self.runs / name)

    def ensemble(self, name: str) -> Path:
        return self.root / "ensembles" / name

    def submission(self, name: str) -> Path:
        return self.root / "submissions" / f"{name}.csv"

    def pipeline(self, name: str) -> Path:
        return self.root / "pipelines" / f"{name}.json"

    def folds(self, competition: str) -> Path:
        return self.root / "folds" / f"{competition}.csv"

    def cache(self) -> Path:
        return environment_dir(self.root) / "goldfold"
