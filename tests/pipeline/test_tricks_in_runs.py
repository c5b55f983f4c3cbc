"""Tricks that reach from the CSV to the submission: what a user sees of them in the artefacts of a run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

from goldfold.bundle import load_bundle
from goldfold.cli import main
from goldfold.images.colour import InputColours
from tests.pipeline.competitions import draw, make_competition

CONFIG = "configs/tiny.yaml"


@pytest.fixture(autouse=True)
def competition(project: Path) -> None:
    make_competition(project)


def train(name: str, *overrides: str, fold: bool = True) -> int:
    return main(["train", CONFIG, "--run", name, *(["--fold", "0"] if fold else []), "train.epochs=2", *overrides])


def probabilities(path: Path) -> np.ndarray:
    return pd.read_parquet(path).sort_values("id").filter(like="p_").to_numpy()


@pytest.mark.parametrize(
    "setting",
    ["input.colour=hsv", "input.colour=lab", "input.local_mean=subtract", "input.normalise=image_per_channel"],
)
def test_what_the_network_sees_is_the_same_in_training_validation_test_and_offline(setting: str, project: Path) -> None:
    """Predicting the training and the test CSV from the bundles alone gives the run's own tables."""
    assert train("tiny", setting, fold=False) == 0
    assert train("plain", fold=False) == 0
    for run in ("tiny", "plain"):
        assert main(["predict", run, "--out", f"{run}.parquet"]) == 0
        assert np.allclose(
            probabilities(Path(f"{run}.parquet")), probabilities(Path(f"runs/{run}/test.parquet")), atol=1e-6
        )
    assert not np.allclose(probabilities(Path("tiny.parquet")), probabilities(Path("plain.parquet")), atol=1e-3)
    bundle, model = load_bundle(Path("runs/tiny/fold0"))
    section, key = setting.split("=")[0].split(".")[1], setting.split("=")[1]
    assert getattr(bundle.model, section) == key
    # The same network without the setting sees something else, so validation must have used it.
    import torch

    name = pd.read_parquet("runs/tiny/fold0/oof.parquet").iloc[0]
    pixels = np.array(Image.open(f"data/tiny/images/{name['id']}.png"))[None]
    seen = InputColours(bundle.model.colour, bundle.model.local_mean)(pixels)
    with torch.inference_mode():
        values = model.probabilities(model(model.prepare(torch.from_numpy(seen)))).numpy()[0]
    assert np.allclose(values, name.filter(like="p_").to_numpy(dtype=float), atol=1e-5)


def test_a_colour_space_has_its_own_mean_in_the_bundle(project: Path) -> None:
    assert train("rgb") == train("hsv", "input.colour=hsv") == 0
    rgb, hsv = (json.loads(Path(f"runs/{run}/fold0/bundle.json").read_text())["model"] for run in ("rgb", "hsv"))
    assert rgb["mean"] != hsv["mean"]
    ids = set(pd.read_parquet("runs/hsv/fold0/oof.parquet")["id"])
    training = [name for name in pd.read_csv("data/tiny/train.csv", dtype=str)["id"] if name not in ids]
    pixels = np.stack([np.asarray(Image.open(f"data/tiny/images/{name}.png")) for name in training])
    expected = InputColours("hsv", "none")(pixels).mean(axis=(0, 1, 2)) / 255
    assert hsv["mean"] == pytest.approx(expected.tolist(), abs=1e-5)


def add_columns(table: str) -> None:
    frame = pd.read_csv(f"data/tiny/{table}.csv", dtype=str)
    number = frame["id"].str[:3].astype(int)
    frame["age"] = (number % 3 * 10.0).astype(str)  # tells the class
    frame.loc[number == 4, "age"] = ""
    frame["sex"] = np.where(number % 2, "m", "f")
    frame.to_csv(f"data/tiny/{table}.csv", index=False)


METADATA = ["model.metadata.numeric=[age]", "model.metadata.categorical=[sex,site]"]


def test_metadata_reaches_validation_test_and_a_later_csv(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for table in ("train", "test"):
        add_columns(table)
    assert train("tiny", *METADATA, "mix.mixup=0.2", "train.epochs=3", fold=False) == 0
    assert main(["predict", "tiny", "--out", "again.parquet"]) == 0
    assert np.allclose(probabilities(Path("again.parquet")), probabilities(Path("runs/tiny/test.parquet")), atol=1e-6)
    # An unknown site and another order of rows are no trouble; another age changes the answer.
    frame = pd.read_csv("data/tiny/test.csv", dtype=str).iloc[::-1]
    frame.assign(site="nowhere").to_csv("unknown.csv", index=False)
    frame.assign(age="20").to_csv("older.csv", index=False)
    for name in ("unknown", "older"):
        assert main(["predict", "tiny", "--csv", f"{name}.csv", "--out", f"{name}.parquet"]) == 0
    assert not np.allclose(probabilities(Path("older.parquet")), probabilities(Path("again.parquet")), atol=1e-4)
    frame.drop(columns="age").to_csv("poor.csv", index=False)
    capsys.readouterr()
    assert main(["predict", "tiny", "--csv", "poor.csv"]) == 2
    assert "'age'" in capsys.readouterr().err


def test_auxiliary_targets_are_dropped_at_inference(project: Path) -> None:
    frame = pd.read_csv("data/tiny/train.csv", dtype=str)
    frame["part"] = frame["id"].str[2]
    frame.loc[::5, "part"] = ""
    frame["depth"] = frame["id"].str[:3].astype(float)
    frame.to_csv("data/tiny/train.csv", index=False)
    both = "loss.auxiliary=[{column: part}, {column: depth, task: regression, weight: 0.5}]"
    assert train("with", both, "mix.cutmix=1.0") == train("without", "mix.cutmix=1.0") == 0
    weights = [load_file(Path(f"runs/{run}/fold0/model.safetensors")) for run in ("with", "without")]
    assert weights[0].keys() == weights[1].keys()
    # They did something while it trained.
    assert any(not np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert main(["predict", "with", "--out", "x.parquet"]) == 0


def make_external(root: Path, rows: int, names: str = "ext", copies: int = 0) -> None:
    rng = np.random.default_rng(5)
    folder = root / "data/more"
    folder.mkdir(parents=True)
    listed = []
    own = pd.read_csv(root / "data/tiny/train.csv", dtype=str)
    for number in range(rows):
        name, kind = f"{names}{number}", number % 3
        picture = draw(kind, rng)
        label = ("cat", "dog", "fox")[kind]
        if number < copies:
            picture, label = Image.open(root / f"data/tiny/images/{own['id'][number]}.png"), own["label"][number]
        picture.save(folder / f"{name}.png")
        listed.append({"id": name, "label": label})
    pd.DataFrame(listed).to_csv(folder / "rows.csv", index=False)


EXTERNAL = "competition.external=[{csv: data/more/rows.csv, image_path: 'data/more/{id}.png', weight: 0.5}]"


def test_external_images_train_and_are_never_validated(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_external(project, 12)
    assert train("more", EXTERNAL, fold=False) == train("less", fold=False) == 0
    assert "36 training rows" in capsys.readouterr().err
    oof = pd.read_parquet("runs/more/oof.parquet")
    assert not oof["id"].str.startswith("ext").any()
    assert sorted(oof["id"]) == sorted(pd.read_parquet("runs/less/oof.parquet")["id"])
    inputs = json.loads(Path("runs/more/run.json").read_text())["inputs"]
    assert {"external_csv_0", "external_images_0"} <= inputs.keys()
    # The members of an ensemble may differ in external data: they are scored on the same rows.
    assert main(["ensemble", "more", "less", "--name", "both"]) == 0
    # A changed table is another training.
    rows = pd.read_csv("data/more/rows.csv")
    rows["label"] = "fox"
    rows.to_csv("data/more/rows.csv", index=False)
    assert train("more", EXTERNAL, fold=False) == 2


def test_external_copies_of_validation_images_are_left_out_of_that_fold(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_external(project, 12, copies=6)
    assert train("more", EXTERNAL, fold=False) == 0
    err = capsys.readouterr().err
    left = [
        int(line.split(": ")[-1].split()[0]) for line in err.splitlines() if "are validation images, left out" in line
    ]
    assert sum(left) == 6
    assert len(left) == 2


@pytest.mark.parametrize("name", ["001x", "049x"])
def test_an_external_id_that_is_taken_is_refused(name: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_external(project, 3)
    rows = pd.read_csv("data/more/rows.csv")
    (project / "data/more/ext0.png").rename(project / f"data/more/{name}.png")
    rows.loc[0, "id"] = name
    rows.to_csv("data/more/rows.csv", index=False)
    for command in ("train", "check"):
        assert main([command, CONFIG, EXTERNAL]) == 2
        assert name in "".join(capsys.readouterr())


def test_pruned_weights_stay_zero_in_the_bundle(project: Path) -> None:
    assert train("x", "train.prune={amount: 0.5, after: 1}", "train.ema.decay=0.5", "train.epochs=3") == 0
    weights = load_file(Path("runs/x/fold0/model.safetensors"))
    values = [value for name, value in weights.items() if name.startswith("backbone.") and value.ndim > 1]
    zeros, n = sum(int((value == 0).sum()) for value in values), sum(value.numel() for value in values)
    assert zeros / n == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("setting", "epochs"),
    [("swa.epochs=2", [2, 3]), ("soup.epochs=3", [1, 2, 3]), ("soup={epochs: 3, method: greedy}", None)],
)
def test_averages_over_epochs_say_what_is_in_them(setting: str, epochs: list[int] | None, project: Path) -> None:
    assert train("x", f"train.{setting}", "train.epochs=3", fold=False) == 0
    done = json.loads(Path("runs/x/fold0/DONE").read_text())
    if epochs is not None:
        assert done["averaged_epochs"] == epochs
    assert set(done["averaged_epochs"]) <= {1, 2, 3}
    last, kept = (load_file(Path(f"runs/x/fold0/{name}model.safetensors")) for name in ("last/", ""))
    if len(done["averaged_epochs"]) > 1:
        assert any(not np.array_equal(last[name], kept[name]) for name in kept)
    assert {path.name for path in Path("runs/x/fold0/last").iterdir()} == {"model.safetensors"}
    cv = json.loads(Path("runs/x/cv.json").read_text())
    assert cv["optimistic"] is ("greedy" in setting)


def test_a_uniform_soup_is_the_mean_of_its_epochs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from goldfold.training import loop

    kept: list[dict[str, Any]] = []
    real = loop.keep_epoch

    def watched(job: Any, session: Any) -> None:
        real(job, session)
        kept.append({name: value.clone() for name, value in session.model.inference_state().items()})

    monkeypatch.setattr(loop, "keep_epoch", watched)
    assert train("x", "train.soup.epochs=2", "train.epochs=3") == 0
    weights = load_file(Path("runs/x/fold0/model.safetensors"))
    for name, value in weights.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue  # computed anew for the averaged weights
        assert np.allclose(value, (kept[1][name] + kept[2][name]) / 2, atol=1e-6), name


def test_plateau_lowers_the_rate_when_the_score_does_not_rise(project: Path) -> None:
    settings = ["schedule.name=plateau", "schedule.warmup_epochs=0", "schedule.patience=0", "schedule.gamma=0.5"]
    assert train("x", *settings, "train.epochs=6", "optim.lr=1e-12") == 0  # nothing is learnt
    rates = [json.loads(line)["lr"] for line in Path("runs/x/fold0/metrics.jsonl").read_text().splitlines()]
    assert rates[0] == rates[1] == 1e-12
    assert rates[2] == pytest.approx(0.5e-12)
    assert rates[5] == pytest.approx(1e-12 * 0.5**4)


CACHED = [
    "model.freeze.stages=2",
    "model.freeze.cache=true",
    "model.freeze.cache_views=none",
    "augment.preset=none",
]


def test_a_cached_trunk_trains_the_same_network(project: Path) -> None:
    """Without random views the stored features are those that the frozen layers would compute: float16 apart."""
    assert train("cached", *CACHED, fold=False) == train("plain", CACHED[0], CACHED[3], fold=False) == 0
    cached, plain = (probabilities(Path(f"runs/{run}/oof.parquet")) for run in ("cached", "plain"))
    assert np.abs(cached - plain).max() < 0.02
    assert not np.array_equal(cached, plain)
    bundle, _ = load_bundle(Path("runs/cached/fold0"))
    assert bundle.model.backbone == "test_efficientnet"
    assert main(["predict", "cached", "--out", "x.parquet"]) == 0  # the bundle is the whole network again
    assert np.allclose(probabilities(Path("x.parquet")), probabilities(Path("runs/cached/test.parquet")), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [("augment.preset=light", "augment.preset"), ("mix.mixup=0.2", "mix.mixup"), ("input.cache=false", "input.cache")],
)
def test_a_cached_trunk_refuses_what_it_cannot_honour(
    wrong: str, key: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("x", *CACHED, wrong) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
    assert key in line


def test_the_lr_finder_leaves_no_trace_in_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["train.accumulate=2", "train.precision=bf16", "train.batch_size=4", "mix.mixup=0.2"]
    assert main(["lr-find", CONFIG, "--steps", "40", "--from", "1e-5", *settings]) == 0
    assert not (project / "runs").exists()
    printed = capsys.readouterr().out
    assert "optim.lr=" in printed
    found = json.loads((project / "lr-find/tiny.json").read_text())
    assert len(found["rates"]) == len(found["losses"])
    assert found["rates"][0] == pytest.approx(1e-5)
    assert Image.open(project / "lr-find/tiny.png").size[0] > 300
    # Its steps change nothing that a training would start from.
    assert train("before") == 0
    assert main(["lr-find", CONFIG, "--steps", "5"]) in (0, 1)
    assert train("after") == 0
    names = ("model.safetensors", "oof.parquet")
    assert [Path(f"runs/before/fold0/{n}").read_bytes() for n in names[:1]] == [Path(f"runs/after/fold0/{n}").read_bytes() for n in names[:1]]  # fmt: skip


def test_tasks_other_than_multiclass_take_the_tricks_too(project: Path) -> None:
    losses = {"binary": "focal", "multilabel": "focal", "ordinal": "auto", "regression": "smooth_l1"}
    for task, loss in losses.items():
        root = project / task
        root.mkdir()
        config = make_competition(root, task)
        tricks = ["mix.mixup=0.4", "mix.cutmix=1.0", "augment.erase.prob=0.5", "train.ema.decay=0.9", "train.epochs=1"]
        with contextlib.chdir(project):
            command = ["-C", str(root), "train", str(config), "--fold", "0", f"loss.name={loss}", *tricks]
            assert main(command) == 0
