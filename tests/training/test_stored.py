"""Behind a cached trunk: what is trained, validated and exported is one and the same network, and stores are shared."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
from safetensors.torch import save_file

from goldfold.bundle import load_bundle
from goldfold.cli import main
from goldfold.config.schema import Train, Tta
from goldfold.features import Features
from goldfold.images import open_images
from goldfold.machine import find_machine
from goldfold.predict import predict_bundle
from goldfold.records import Predictions
from goldfold.training import finish
from goldfold.training.stored import Stored
from goldfold.tta import make_views

CONFIG = "configs/tiny.yaml"
CACHED = ["model.freeze.stages=2", "model.freeze.cache=true", "augment.preset=none"]
DRAWN = ["model.freeze.stages=2", "model.freeze.cache=true", "model.freeze.cache_views=3", "augment.preset=light"]
pytestmark = pytest.mark.usefixtures("project")


def train(name: str, *settings: str) -> int:
    return main(["train", CONFIG, "--run", name, "train.epochs=2", *settings])


def stores() -> dict[str, Features]:
    return {path.parent.name: Features(path.parent) for path in sorted(Path(".cache").rglob("features/*/index.json"))}


def whole(folder: Path) -> tuple[Predictions, Predictions]:
    """The fold's out-of-fold table, and what its bundle, the whole network, says of those images."""
    found = Predictions.read(folder / "oof.parquet", "x")
    bundle, model = load_bundle(folder)
    paths = [Path(f"data/tiny/images/{name}.png").absolute() for name in found.ids]
    images = open_images(None, found.ids, paths, bundle.images)
    machine = find_machine(Train(device="cpu"))
    frame = pd.read_csv("data/tiny/train.csv", dtype=str).set_index("id").loc[list(found.ids)].reset_index()
    return found, predict_bundle(
        bundle, model, images, found.ids, batch_size=128, machine=machine, what="", frame=frame
    )


def known_alone(predict: Any, model: Any, images: Any, rows: Any, **given: Any) -> Any:
    """Fails where the whole network is to see validation images (24; the test has 12)."""
    assert len(rows) == 12 or {view.name for view in given["views"]} == set(given["known"])
    return predict(model, images, rows, **given)


@pytest.mark.parametrize(
    "settings",
    [
        ["tta.views=d4", "model.freeze.cache_views=d4", "train.ema.decay=0.9", "model.pool=gem"],
        ["tta.views=flips", "train.keep=best", "train.precision=bf16"],
        ["tta.views=flip", "train.soup.epochs=2", "train.soup.method=greedy"],
        ["tta.views=auto", "tta.candidates=flips", "train.swa.epochs=1"],
        ["tta.views=none", "model.metadata.categorical=[site]", "model.freeze.stages=all"],
    ],
)
def test_the_exported_network_says_what_the_tail_says(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores while training and out-of-fold predictions come from stored features alone, the bundle from pixels."""
    for name in ("predict_images", "predict_views"):
        monkeypatch.setattr(finish, name, functools.partial(known_alone, getattr(finish, name)))
    assert train("x", *CACHED, *settings, "--fold", "0") == 0
    found, said = whole(Path("runs/x/fold0"))
    difference = np.abs(found.values - said.values).max()
    assert 0 < difference < (0.02 if "bf16" in settings[-1] else 1e-3)


def test_views_that_are_not_stored_are_seen_by_the_whole_network() -> None:
    assert train("x", *CACHED, "model.freeze.cache_views=none", "tta.views=flips", "--fold", "0") == 0
    found, said = whole(Path("runs/x/fold0"))
    assert np.abs(found.values - said.values).max() < 1e-3
    assert train("larger", *CACHED, "tta.size=32", "--fold", "0") == 0
    found, said = whole(Path("runs/larger/fold0"))
    assert np.abs(found.values - said.values).max() < 1e-5


class TestFind:
    def stored(self, first: int, n_views: int) -> Stored:
        features: Any = type("Some", (), {"first": first, "n_views": n_views})
        nothing: Any = None
        return Stored(features, nothing, 8)

    def test_by_what_a_view_shows(self) -> None:
        d4 = make_views(Tta(views="d4"), 8)
        found = self.stored(0, 8).find(d4)
        assert sorted(found.values()) == list(range(8))
        assert found["identity"] == 0
        assert len(self.stored(0, 4).find(d4)) == 4
        flips = self.stored(0, 8).find(make_views(Tta(views="flips"), 8))
        assert flips == {"identity": 0, "HorizontalFlip": 1, "VerticalFlip": 2, "HorizontalFlip+VerticalFlip": 3}

    def test_drawn_views_and_other_pixels_are_none(self) -> None:
        assert self.stored(1, 9).find(make_views(Tta(views="d4"), 8)) == {"identity": 0}
        assert set(self.stored(0, 8).find(make_views(Tta(views="scales"), 8))) == {"identity"}
        assert not self.stored(0, 8).find(make_views(Tta(views="five-crop"), 8))


def test_folds_seeds_and_students_share_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = timm.create_model("test_efficientnet", num_classes=0)
    save_file(backbone.state_dict(), "weights.safetensors")
    shared = [*CACHED, "model.pretrained=true", "model.weights=weights.safetensors", "model.freeze.cache_views=flip"]
    assert train("first", *shared, "train.seeds=[7]") == 0
    assert len(stores()) == 1
    student = [
        "model.head.hidden=[8]",
        "model.drop_rate=0.5",
        "model.drop_path_rate=0.1",
        "model.pool=gem",
        "optim.lr=0.1",
        "teacher.runs=[first]",
        "train.seed=3",
    ]
    distilled = ["teacher.distill.weight=0.5", "teacher.distill.how=online"]
    capsys.readouterr()
    assert train("student", *shared, *student, *distilled) == 0
    assert len(stores()) == 1
    assert "features of the frozen stages: computing" not in capsys.readouterr().err
    # Test images are a store of their own, beside the training images'.
    assert train("pseudo", *shared, "teacher.runs=[first]", "teacher.pseudo.labels=soft") == 0
    assert sorted(len(store.ids) for store in stores().values()) == [12, 48]


def test_drawn_views_are_those_of_the_settings_alone(tmp_path: Path) -> None:
    assert train("x", *DRAWN, "--fold", "0") == 0
    ((name, store),) = stores().items()
    assert (store.n_views, store.first) == (4, 1)
    every = np.stack([store.read(np.arange(48), np.full(48, view)) for view in range(4)])
    assert len({view.tobytes() for view in every}) == 4
    # The same settings draw the same, wherever they are built; others have a store of their own.
    assert train("y", *DRAWN, "--fold", "0", "input.cache_dir=other", "optim.lr=0.1") == 0
    assert Path(f"other/features/{name}/features.npy").read_bytes() == (store.folder / "features.npy").read_bytes()
    assert train("z", *DRAWN, "--fold", "0", "augment.add=[{HorizontalFlip: {p: 1.0}}]") == 0
    assert len(stores()) == 2
    # The first view is the image as it is, which validation sees; training sees the others.
    found, said = whole(Path("runs/x/fold0"))
    assert np.abs(found.values - said.values).max() < 1e-3


def test_training_takes_drawn_views_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Features.read

    def watched(self: Features, rows: Any, views: Any) -> Any:
        seen.extend(np.asarray(views).tolist())
        return real(self, rows, views)

    monkeypatch.setattr(Features, "read", watched)
    assert train("x", *DRAWN, "--fold", "0", "train.validate_every=2", "train.epochs=4") == 0
    assert seen.count(0) == 2 * 24  # two validations; the last one is the out-of-fold view
    assert set(seen) == {0, 1, 2, 3}


def test_a_run_with_drawn_views_repeats_itself() -> None:
    for run in ("x", "y"):
        assert train(run, *DRAWN, "--fold", "0", f"input.cache_dir={run}") == 0
    weights = [Path(f"runs/{run}/fold0/model.safetensors").read_bytes() for run in ("x", "y")]
    assert weights[0] == weights[1]
    scores = [json.loads(line)["loss"] for line in Path("runs/x/fold0/metrics.jsonl").read_text().splitlines()]
    assert len(pd.unique(pd.Series(scores))) == 2


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["model.freeze.stages=0"], "set model.freeze.stages"),
        (["input.cache=false"], "input.cache"),
        (["augment.preset=light"], "model.freeze.cache_views to how many draws"),
        (["augment.add=[{HorizontalFlip: {p: 0.5}}]"], "model.freeze.cache_views to how many draws"),
        (["model.freeze.cache_views=4"], "draws of augment, which leaves images as they are"),
        (["model.freeze.cache_views=0"], "model.freeze.cache_views"),
        (["augment.preset=light", "augment.on=device", "model.freeze.cache_views=4"], "set augment.on to host"),
        (["augment.erase.prob=0.2"], "augment.erase.prob"),
        (["mix.mixup=0.2"], "mix.mixup"),
        (["mix.cutmix=1.0"], "mix.cutmix"),
        (["loss.jsd=12", "augment.add=[{AugMix: {}}]", "model.freeze.cache_views=4"], "loss.jsd"),
        (["balance.rare_preset=heavy"], "balance.rare_preset"),
        (["train.prune.amount=0.5"], "train.prune"),
        (["train.phases=[{epochs: 1, size: 16}, {epochs: 1}]"], "train.phases[0].size"),
        (["train.phases=[{epochs: 1}, {epochs: 1, frozen: 0}]"], "train.phases[1].frozen"),
        (["train.phases=[{epochs: 1}, {epochs: 1, mix: {mixup: 0.2}}]"], "train.phases[1].mix"),
        (["train.phases=[{epochs: 1}, {epochs: 1, augment: {preset: light}}]"], "train.phases[1].augment"),
        (
            ["teacher.runs=[x]", "teacher.distill.weight=0.5", "teacher.distill.how=online", *DRAWN],
            "teacher.distill.how 'online'",
        ),
        (["model.freeze.cache=false", "model.freeze.cache_views=4"], "does nothing without model.freeze.cache"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_line(
    settings: list[str], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("x", *CACHED, *settings) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
    assert key in line
    assert not Path("runs").exists()


def test_drawn_views_can_be_looked_at() -> None:
    assert main(["augment-preview", CONFIG, *DRAWN, "--out", "sheet.png"]) == 0
    assert Path("sheet.png").exists()
    assert main(["augment-preview", CONFIG, *CACHED, "--out", "none.png"]) == 2
