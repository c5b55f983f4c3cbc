"""ELPV: electroluminescence photographs of solar cells, as a binary competition.

2,624 grey photographs (300 x 300) from the PyPI package ``elpv-dataset``, licence CC BY-NC-SA 4.0.
Sources: Buerhop-Lutz et al. 2018 (EU PVSEC), Deitsch et al. 2019 (Solar Energy 185), Deitsch et al. 2021 (Machine
Vision and Applications 32).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

from goldfold import files
from goldfold.demo.layout import lay_out, link_or_copy, shuffled_ids, write_tables
from goldfold.errors import BadInput, some
from goldfold.progress import progress, say

LAYOUT = 1
"""Raised when the files that this room writes change."""
FEW_SHARE = 0.1
PUBLISHED_ACCURACY = {"CNN, VGG-19": 0.8842, "SVM": 0.8244}
"""Deitsch et al. 2019 (Solar Energy 185), on a 75/25 split of their own, at 300 pixels."""


def prepare_elpv(root: Path, seed: int) -> Path:
    """Lay the ELPV competition out under ``root/data/elpv``; returns that folder.

    train.csv (id, defective, grade, cell_type), test.csv (id, cell_type), sample_submission.csv and solution.csv
    (id, defective), images/<id>.png; 75/25, stratified by grade x cell type. ``grade`` is the expert's probability of
    a defect, ``defective`` whether it reaches 0.5.

    The package's own numbers are ordered by module and tell much about the label (rank correlation -0.38), so each
    cell gets a new id, dealt by the seed: el0001 to el2624.

    Does nothing when the folder is whole and of the same seed and package. Raises BadInput when the package is missing
    or the folder holds something else.
    """
    package = _package()
    source = {"layout": LAYOUT, "package": f"elpv-dataset {_version()}", "seed": seed}

    def build(folder: Path) -> None:
        say("ELPV: laying out 2,624 photographs of solar cells (CC BY-NC-SA 4.0, github.com/zae-bayern/elpv-dataset)")
        cells = _read_labels(package / "labels.csv")
        cells.insert(0, "id", shuffled_ids("el", len(cells), seed))
        pairs = list(zip(cells["path"], cells["id"], strict=True))
        for path, name in progress(pairs, "ELPV images", len(pairs), "images"):
            link_or_copy(package / path, folder / "images" / f"{name}.png")
        write_tables(
            folder,
            cells[["id", "defective", "grade", "cell_type"]],
            "defective",
            guess=0.5,
            hidden=["defective", "grade"],
            strata=["grade", "cell_type"],
            seed=seed,
        )

    return lay_out(root / "data" / "elpv", source, build)


def prepare_few(root: Path, seed: int) -> Path:
    """A tenth of ELPV's labels, under ``root/data/elpv-few``; returns that folder. The images stay in data/elpv/images.

    train.csv is a tenth of ELPV's, stratified by grade x cell type; unlabelled.csv holds the ids of the other nine tenths;
    the test set with its hidden labels is the same. Raises BadInput as ``prepare_elpv`` does.
    """
    whole = prepare_elpv(root, seed)

    def build(folder: Path) -> None:
        rows = pd.read_csv(whole / "train.csv", dtype=str)
        together = rows["grade"] + "|" + rows["cell_type"]
        rest, few = train_test_split(rows, test_size=FEW_SHARE, stratify=together, random_state=seed)
        say(f"ELPV: labels of {len(few)} photographs, {len(rest)} without")
        files.write_csv(folder / "train.csv", few.sort_values("id"))
        files.write_csv(folder / "unlabelled.csv", rest.sort_values("id")[["id", "cell_type"]])
        for table in ("test.csv", "sample_submission.csv", "solution.csv"):
            link_or_copy(whole / table, folder / table)

    source = {"layout": LAYOUT, "package": f"elpv-dataset {_version()}", "seed": seed, "share": FEW_SHARE}
    return lay_out(root / "data" / "elpv-few", source, build)


def _package() -> Path:
    """The package's data folder, found without importing it (it would load every image)."""
    spec = find_spec("elpv_dataset")
    folders = [Path(place) / "data" for place in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        if (folder / "labels.csv").is_file():
            return folder
    raise BadInput("demo", "needs the PyPI package elpv-dataset", 'pip install "goldfold[demo]"')


def _version() -> str:
    try:
        return version("elpv-dataset")
    except PackageNotFoundError:
        return "unknown"


def _read_labels(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep=r"\s+", header=None, names=["path", "probability", "cell_type"])
    missing = [name for name in table["path"] if not (path.parent / name).is_file()]
    if missing:
        raise BadInput(path, f"images are missing: {some(missing)}", "install elpv-dataset again")
    table["grade"] = table["probability"].map("{:.3f}".format)
    table["defective"] = (table["probability"] >= 0.5).astype(int)
    return table
