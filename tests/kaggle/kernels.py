"""A kernel's surroundings for tests: Kaggle's input folder with a competition and a described pack, and stand-ins for the
Goldfold that the kernel starts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd

from goldfold.images import ImageSpec
from goldfold.kaggle.pack import Pack, PackCompetition, PackFold, PackMember, write_pack
from goldfold.submission import SubmissionFormat, decide_format
from goldfold.tasks import Task

KERNEL = Path(__file__).parents[2] / "inference/kernel.py"
BINARY = Task("binary", ("dog",), "cat")
THREE = Task("multiclass", ("ant", "bee", "cow"))
LAYOUTS = {
    "competitions": ("competitions/pets", "datasets/me/pets-pack"),
    "datasets": ("datasets/someone/pets", "datasets/me/pets-pack"),
    "flat": ("pets", "pets-pack"),
}


def load_kernel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("goldfold_kernel", KERNEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe_pack(
    folder: Path,
    task: Task = THREE,
    format: SubmissionFormat | None = None,
    prior: Sequence[float] = (0.2, 0.5, 0.3),
    sample_csv: str | None = "sample_submission.csv",
    hours: float = 1.0,
) -> Pack:
    """Write a pack.json without any weights."""
    folder.mkdir(parents=True, exist_ok=True)
    member = PackMember(
        name="run", weight=1.0, score=None, marginal_gain=None, leaky=False, optimistic=False, views="none", merge="mean",
        side=24, images=ImageSpec(24, 3, "squash", "area", "full"), batch_size=8, precision="auto", channels_last=True,
        weights_bytes=1, image_bytes=1, folds=(PackFold(0, 0, "members/run/fold0", ()),),
    )  # fmt: skip
    pack = Pack(
        folder=folder,
        source="run",
        kind="run",
        goldfold="0.1.0",
        leaky=False,
        optimistic=False,
        hours=hours,
        task=task,
        competition=PackCompetition(
            "pets", "id", ("label",), "accuracy", None, "test.csv", "images/{id}.png", sample_csv
        ),
        submission=format or decide_format(task, "probability", None, "id"),
        prior=tuple(prior),
        members=(member,),
    )
    write_pack(pack)
    return pack


def write_rows(folder: Path, ids: Sequence[str], sample: pd.DataFrame | None) -> None:
    """The hidden test CSV and the sample submission of the competition."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"id": list(ids), "site": "s"}, dtype=object).to_csv(folder / "test.csv", index=False)
    if sample is not None:
        sample.to_csv(folder / "sample_submission.csv", index=False)


def sample_of(ids: Sequence[str], columns: Sequence[str], cell: str = "0") -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), **{name: [cell] * len(ids) for name in columns}}, dtype=object)


class Kaggle:
    """Kaggle's folders under a temporary one."""

    def __init__(self, root: Path, layout: str = "competitions") -> None:
        self.input, self.working, self.engine = root / "input", root / "working", root / "engine"
        self.working.mkdir(parents=True)
        competition, pack = LAYOUTS[layout]
        self.competition, self.pack = self.input / competition, self.input / pack

    @property
    def submission(self) -> Path:
        return self.working / "submission.csv"

    def rows(self) -> pd.DataFrame:
        return pd.read_csv(self.submission, dtype=str, keep_default_na=False)

    def stand_in(self, code: str) -> None:
        """A Goldfold whose ``goldfold.inference.run.main`` has this body and returns 0; ``submission`` is the path of submission.csv."""
        package = self.engine / "goldfold" / "inference"
        package.mkdir(parents=True)
        body = "".join(f"    {line}\n" for line in code.splitlines())
        head = "import os, signal, sys, time\nfrom pathlib import Path\n\n\ndef main():\n"
        path = "    submission = Path(os.environ['GOLDFOLD_WORKING']) / 'submission.csv'\n"
        (package / "run.py").write_text(head + path + body + "    return 0\n")
        (package / "__init__.py").touch()
        (package.parent / "__init__.py").touch()

    def run(self, script: Path = KERNEL, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script)],
            env=self.variables(variables),
            cwd=self.working,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOLDFOLD", "KAGGLE"))}
        own = {"GOLDFOLD_INPUT": str(self.input), "GOLDFOLD_WORKING": str(self.working), "PYTHONPATH": str(self.engine)}
        return {**kept, **own, **more}
