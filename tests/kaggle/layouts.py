"""Competitions as Kaggle ships them, in small: each function writes one layout into a folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROWS, TESTS = 40, 10
BREEDS = ("border collie", "chow", "golden retriever", "pug")
Layout = Callable[[Path], None]


def images(folder: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((12, 16, 3), number * 5 % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def csv(path: Path, **columns: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


def numbered(mark: str, count: int = ROWS) -> list[str]:
    return [f"{mark}{number * 7919 % 10007:05x}" for number in range(1, count + 1)]


def cycle(values: Sequence[object], count: int = ROWS) -> list[object]:
    return list(itertools.islice(itertools.cycle(values), count))


def plain(root: Path) -> None:
    """Text labels in uneven classes, id without suffix, labels in the sample, decoy columns and decoy tables."""
    train, test = numbered("a"), numbered("b", TESTS)
    images(root / "train_images", [f"{name}.jpg" for name in train])
    images(root / "train_masks", [f"{name}.png" for name in train])
    images(root / "test_images", [f"{name}.jpg" for name in test])
    labels = cycle(["cat", "cat", "cat", "cat", "cat", "dog", "fox", "dog"])
    csv(
        root / "train.csv",
        image_id=train,
        label=labels,
        width=cycle([16]),
        height=cycle([12]),
        source=cycle(["web", "own"]),
    )
    csv(root / "test.csv", image_id=test, width=cycle([16], TESTS), height=cycle([12], TESTS))
    csv(root / "sample_submission.csv", image_id=test, label=cycle(["cat"], TESTS))
    csv(root / "train_metadata.csv", image_id=train, camera=cycle(["x", "y", "z"]))
    csv(root / "class_names.csv", label=["cat", "dog", "fox"], name=["Felis", "Canis", "Vulpes"])


def with_suffix(root: Path) -> None:
    """Ids with their suffix, a class number, no test.csv: the sample lists what is to be predicted."""
    train, test = [f"{name}.png" for name in numbered("a")], [f"{name}.png" for name in numbered("b", TESTS)]
    images(root / "train_images", train)
    images(root / "test_images", test)
    csv(root / "train.csv", image_id=train, label=cycle([0, 1, 2, 3]))
    csv(root / "sample_submission.csv", image_id=test, label=cycle([3], TESTS))


def class_folders(root: Path) -> None:
    """Images in folders of their class, the label in the CSV too, a column a class in the sample."""
    train, test = numbered("a"), numbered("b", TESTS)
    labels = cycle(BREEDS)
    images(root / "train", [f"{label}/{name}.jpg" for name, label in zip(train, labels, strict=True)])
    images(root / "test", [f"{name}.jpg" for name in test])
    csv(root / "labels.csv", id=train, breed=labels)
    csv(root / "sample_submission.csv", id=test, **{breed: cycle([0.25], TESTS) for breed in BREEDS})


def one_hot(root: Path) -> None:
    """Several labels an image, a column each."""
    train, test = numbered("a"), numbered("b", TESTS)
    images(root / "images", [f"{name}.jpg" for name in [*train, *test]])
    marks = {"crab": cycle([1, 0, 0, 1]), "snail": cycle([1, 1, 0, 0, 0]), "worm": cycle([0, 0, 1])}
    csv(root / "train.csv", image_id=train, **marks)
    csv(root / "test.csv", image_id=test)
    csv(root / "sample_submission.csv", image_id=test, **{name: cycle([0.5], TESTS) for name in marks})


def label_texts(root: Path) -> None:
    """Several labels an image in one text."""
    train, test = [f"{name}.jpg" for name in numbered("a")], [f"{name}.jpg" for name in numbered("b", TESTS)]
    images(root / "train_images", train)
    images(root / "test_images", test)
    texts = cycle(["healthy", "scab rust", "scab", "rust", "rust mildew", "mildew"])
    csv(root / "train.csv", image=train, labels=texts)
    csv(root / "sample_submission.csv", image=test, labels=cycle(["healthy"], TESTS))


def bars(root: Path) -> None:
    """Labels parted by bars, no sample and no test."""
    train = numbered("a")
    images(root / "png", [f"{name}.png" for name in train])
    csv(
        root / "Data_Entry.csv",
        image=train,
        findings_label=cycle(["Mass", "Mass|Nodule", "Nodule", "Edema|Mass", "Edema"]),
    )


def binary(root: Path) -> None:
    """Yes or no with probabilities in the sample, and patients that should not cross folds."""
    train, test = numbered("ISIC_", 60), numbered("ISIC_t", TESTS)
    images(root / "jpeg/train", [f"{name}.jpg" for name in train])
    images(root / "jpeg/test", [f"{name}.jpg" for name in test])
    patients = [f"IP_{number // 4}" for number in range(60)]
    others = [f"IP_{90 + number // 2}" for number in range(TESTS)]
    names = {"image_name": train, "patient_id": patients, "sex": cycle(["male", "female"], 60)}
    csv(
        root / "train.csv",
        **names,
        benign_malignant=cycle(["benign", "benign", "malignant"], 60),
        target=cycle([0, 0, 1], 60),
    )
    csv(root / "test.csv", image_name=test, patient_id=others, sex=cycle(["male"], TESTS))
    csv(root / "sample_submission.csv", image_name=test, target=cycle([0.5], TESTS))


def regression(root: Path) -> None:
    """A number an image, and columns of 0 and 1 that describe it and are no target."""
    train, test = numbered("a"), numbered("b", TESTS)
    images(root / "train", [f"{name}.jpg" for name in train])
    images(root / "test", [f"{name}.jpg" for name in test])
    csv(root / "train.csv", Id=train, Eyes=cycle([0, 1]), Face=cycle([1, 1, 0]), Pawpularity=range(20, 20 + ROWS))
    csv(root / "test.csv", Id=test, Eyes=cycle([0], TESTS), Face=cycle([1], TESTS))
    csv(root / "sample_submission.csv", Id=test, Pawpularity=[50.5 + number for number in range(TESTS)])


def several_numbers(root: Path) -> None:
    """Three numbers an image."""
    train, test = numbered("a"), numbered("b", TESTS)
    images(root / "images", [f"{name}.png" for name in [*train, *test]])
    values = {
        name: [round(number * step, 2) for number in range(ROWS)]
        for name, step in (("x", 0.1), ("y", 0.5), ("z", 2.25))
    }
    csv(root / "train.csv", id=train, **values)
    csv(root / "test.csv", id=test)
    csv(root / "sample_submission.csv", id=test, **{name: cycle([0.0], TESTS) for name in values})


def grades(root: Path) -> None:
    """Grades in an order."""
    train, test = numbered("a"), numbered("b", TESTS)
    images(root / "train_images", [f"{name}.png" for name in train])
    images(root / "test_images", [f"{name}.png" for name in test])
    csv(root / "train.csv", id_code=train, diagnosis_grade=cycle([0, 1, 2, 3, 4]))
    csv(root / "test.csv", id_code=test)
    csv(root / "sample_submission.csv", id_code=test, diagnosis_grade=cycle([0], TESTS))


def nested(root: Path) -> None:
    """Everything a folder deeper, images in folders of a column, numbers as ids and leading zeros in the names."""
    train, test = list(range(1, ROWS + 1)), list(range(501, 501 + TESTS))
    sites = cycle(["north", "south", "east"])
    deep = root / "dataset/v2"
    images(deep / "img/train", [f"{site}/{number:06d}.png" for number, site in zip(train, sites, strict=True)])
    images(deep / "img/test", [f"north/{number:06d}.png" for number in test])
    csv(deep / "train.csv", id=train, region=sites, label=cycle(["wheat", "weed"]))
    csv(deep / "test.csv", id=test, region=cycle(["north"], TESTS))
    csv(deep / "sample_submission.csv", id=test, label=cycle(["wheat"], TESTS))


def paths_as_ids(root: Path) -> None:
    """Ids that are paths, and names with something around the id."""
    train, test = [f"train/{name}.jpg" for name in numbered("a")], [f"test/{name}.jpg" for name in numbered("b", TESTS)]
    images(root / "photos", [*train, *test])
    csv(root / "train.csv", file=train, target=cycle(["up", "down", "left"]))
    csv(root / "test.csv", file=test)
    csv(root / "sample_submission.csv", file=test, target=cycle(["up"], TESTS))


def prefixed(root: Path) -> None:
    """img_12.png for the id 12; ids that begin with the patient."""
    train = [f"p{number // 4}-{number}" for number in range(ROWS)]
    test = [f"t{number // 4}-{number}" for number in range(TESTS)]
    images(root / "scans", [f"scan_{name}.png" for name in [*train, *test]])
    csv(root / "train.csv", id=train, label=cycle(["ill", "well"]))
    csv(root / "test.csv", id=test)
    csv(root / "sample_submission.csv", id=test, label=cycle([0.5], TESTS))


def hidden_test(root: Path) -> None:
    """A code competition: the test images come with the hidden test."""
    train, test = numbered("a"), numbered("b", 3)
    images(root / "train_images", [f"{name}.png" for name in train])
    csv(root / "train.csv", image_id=train, label=cycle(["CC", "EC", "HGSC", "LGSC"]))
    csv(root / "test.csv", image_id=test)
    csv(root / "sample_submission.csv", image_id=test, label=["CC"] * 3)


def sharded(root: Path) -> None:
    """Folders by the first characters of the id."""
    train, test = numbered(""), numbered("", ROWS + TESTS)[ROWS:]
    images(root / "images", [f"{name[:2]}/{name}.png" for name in [*train, *test]])
    csv(root / "train.csv", id=train, category_id=cycle(range(8)))
    csv(root / "test.csv", id=test)
    csv(root / "sample_submission.csv", id=test, category_id=cycle([1], TESTS))
