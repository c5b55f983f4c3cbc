"""The canary is silent on honest rounds, sings on each leaky one, and says when it could not have sung."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from goldfold.cli import main
from goldfold.rounds.teachers import Run
from tests.canary.textures import DISTIL, HONEST, LEAKY, OTHERS, PSEUDO, SMALL, TEACHER, UNLABELLED, make_textures
from tests.contract.test_formats import documented, written


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def record() -> dict[str, Any]:
    return json.loads(Path("canary/rounds/canary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def alarms(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(check["round"], check["rows_of"]) for check in found["checks"] if check["verdict"] == "leak"}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_silent_on_honest_rounds_and_loud_on_each_leaky_form(
    root: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = make_textures(root, [*HONEST, *LEAKY])
    assert main(["canary", str(pipeline), *SMALL, "--seed", str(seed)]) == 1
    found = record()
    honest = {step["name"] for step in HONEST}
    assert [check for check in found["checks"] if check["round"] in honest and check["verdict"] != "chance"] == []
    # The alarm rings where the leak went through: the pool's twins, or the twins among other folds' rows.
    sung = {
        ("leaky-pseudo", "pool"),
        ("leaky-distil", "planted"),
        ("leaky-online", "planted"),
        ("leaky-features", "planted"),
        ("leaky-unlabelled", "pool"),
    }
    assert sung <= alarms(found)
    leaky = [step["name"] for step in LEAKY]
    assert [entry["name"] for entry in found["rounds"] if entry["leaky"]] == leaky
    assert all(control["memory"] > 0.8 for control in found["controls"] if control["round"] == "teacher")
    last = capsys.readouterr().out.splitlines()[-2]
    assert last == f"red: labels leak in {', '.join(leaky)} (leaky on purpose: {', '.join(leaky)})"


@pytest.mark.slow
def test_other_forms_of_teaching(root: Path) -> None:
    """Inner folds, hard labels, stacks, greedy blends and students that teach are honest; what a leaky student teaches is
    marked, too."""
    pipeline = make_textures(root, OTHERS)
    assert main(["canary", str(pipeline), *SMALL, "--seed", "1"]) == 1
    found = record()
    leaky = {entry["name"] for entry in found["rounds"] if entry["leaky"]}
    assert leaky == {"leaky-by-stack", "taught-by-leaky"}
    assert {check["round"] for check in found["checks"] if check["verdict"] != "chance"} <= leaky
    # What a stack learns of shuffled labels would silence its members.
    assert ("leaky-by-stack", "pool") in alarms(found)
    assert {"rounds.stack.method": "mean", "rounds.stack.calibration": "none"}.items() <= found["changes"].items()
    assert not [key for key in found["changes"] if key.startswith("rounds.greedy")]


def test_green_leaves_nothing_but_its_record(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = make_textures(root, HONEST[:2])
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main(["canary", str(pipeline), *SMALL, "model.metadata.drop_rate=0.2"]) == 0
    out, told = capsys.readouterr()
    assert out.splitlines()[-2] == "green: 6 scores are at chance (false alarms: 0.001 a report)"
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {root / "canary/rounds/canary.json"}
    found = record()
    assert found["verdict"] == "green"
    known = documented("canary.json")
    assert written(found, known) == known
    # What was switched off is said, and what is tested is not switched off.
    off = {"augment.preset": "none", "mix.mixup": 0.0, "loss.smoothing": 0.0, "model.drop_rate": 0.0}
    off["tta.views"] = "none"  # mirror images are not what was remembered
    assert off.items() <= found["changes"].items()
    assert not [key for key in found["changes"] if key.startswith("teacher.")]
    assert not [
        key for key in found["changes"] if key.startswith("model.metadata")
    ]  # the command line has the last word
    assert "  model.drop_rate=0.0" in told.splitlines()


def test_a_broken_guard_is_heard(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold k's student hears the teachers of another fold, and their labels claim to be fold k's; those of inner folds are
    the outer folds' out-of-fold answers."""
    from goldfold.pipeline import teaching

    monkeypatch.setattr(teaching, "_cross_fitted", lambda lesson, job, fold: teaching._out_of_fold(lesson))
    bundles = Run.bundles
    monkeypatch.setattr(Run, "bundles", lambda run, fold: bundles(run, None if fold is None else (fold + 1) % 2))
    inner = {**DISTIL, "name": "inner", "how": "cross_fitted", "inner": 2}
    pipeline = make_textures(root, [*HONEST[:3], inner])
    assert main(["canary", str(pipeline), *SMALL, "--seed", "1"]) == 1
    found = record()
    assert found["verdict"] == "red"
    assert {("pseudo", "pool"), ("distil", "planted"), ("inner", "planted")} <= alarms(found)
    assert not [name for name, _ in alarms(found) if name == "teacher"]


def test_validation_rows_in_training_are_heard(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain leak, with no teacher at all."""
    from goldfold.records import FoldTable

    monkeypatch.setattr(FoldTable, "train_ids", lambda table, fold: table.ids)
    pipeline = make_textures(root, [TEACHER])
    assert main(["canary", str(pipeline), *SMALL]) == 1
    assert ("teacher", "all") in alarms(record())


def test_a_network_that_remembers_nothing_makes_the_canary_blind(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = make_textures(root, [TEACHER])
    assert main(["canary", str(pipeline), "--rows", "60", "--size", "16", "--epochs", "1", "optim.lr=1e-6"]) == 1
    out = capsys.readouterr().out
    assert "blind: teacher remembers 0.0" in out
    assert "silence proves nothing; raise --epochs or optim.lr" in out
    assert record()["verdict"] == "blind"


def test_views_that_are_chosen_by_score(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are chosen among such as the networks remember, so that honest rounds are silent and not blind."""
    rounds = [TEACHER, {**PSEUDO, "name": "leaky-pseudo", "leaky": True}]
    pipeline = make_textures(root, rounds, tta={"views": "auto", "candidates": "d4", "min_gain": 0.5, "merge": "gmean"})
    assert main(["canary", str(pipeline), *SMALL]) == 1
    found = record()
    assert alarms(found) == {("leaky-pseudo", "pool")}
    assert all(control["memory"] > 0.8 for control in found["controls"] if control["round"] == "teacher")
    assert "blind" not in capsys.readouterr().out
    assert {key for key in found["changes"] if key.startswith("tta")} == {"tta.candidates", "tta.min_gain"}


@pytest.mark.slow
def test_the_demos_pipeline_without_a_download(root: Path) -> None:
    """Two networks, a blend that labels the test images and answers batches, another blend."""
    assert main(["demo", "--tiny", "--prepare"]) == 0
    settings = [
        "model.backbone=test_byobnet",
        "train.device=cpu",
        "folds.n=2",
        *SMALL[:2],
        *SMALL[4:],
        "--epochs",
        "12",
    ]
    assert main(["canary", "configs/digits/pipeline.yaml", *settings]) == 0
    found = json.loads(Path("canary/digits/canary.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "green"
    assert {entry["kind"] for entry in found["rounds"]} == {"train", "ensemble", "pseudo_label", "distill"}
    heard = {"teacher.distill.temperature": 1.0, "teacher.distill.weight": 1.0, "teacher.pseudo.min_prob": 0.0}
    assert heard.items() <= found["changes"].items()


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_other_tasks(root: Path, task: str) -> None:
    # A leak moves a number's rank less surely than a class, so it takes more rows to see. A number has no thresholds.
    few = task != "regression"
    leaky = LEAKY[0] if few else {**PSEUDO, "name": "leaky-pseudo", "leaky": True}
    rounds = [TEACHER, {**leaky, "images": "unlabelled", "set": {"competition.unlabelled": UNLABELLED}}]
    pipeline = make_textures(root, rounds, task, 84 if few else 170)
    assert main(["canary", str(pipeline), *SMALL, *([] if few else ["--rows", "160"])]) == 1
    found = record()
    assert alarms(found) >= {("leaky-pseudo", "pool")}
    assert not [name for name, _ in alarms(found) if name == "teacher"]
    assert all(control["memory"] > 0.5 for control in found["controls"])


def test_kept_competition_is_what_the_page_says(root: Path) -> None:
    pipeline = make_textures(root, [TEACHER])
    assert main(["canary", str(pipeline), *SMALL, "--keep", "--seeds", "2", "train.epochs=1"]) == 1
    for seed in range(2):
        data = root / f"canary/rounds/seed{seed}/data"
        train, test = pd.read_csv(data / "train.csv"), pd.read_csv(data / "test.csv")
        assert len(train) == 120
        assert len(test) == 40 + 20  # twins, and test images that are nobody's
        assert list(test.columns) == ["id", "site", "fold"]
        assert train["label"].value_counts().max() <= 45
        assert {f"{name}.png" for name in [*train["id"], *test["id"]]} == {p.name for p in (data / "images").iterdir()}
    assert record()["seeds"] == [0, 1]
    assert {check["rows"] for check in record()["checks"]} == {160, 80}


def test_bad_input(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = str(make_textures(root, [TEACHER]))

    def says(*arguments: str) -> str:
        assert main(["canary", *arguments]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "--rows: 4 rows are too few for 2 folds" in says(pipeline, "--rows", "4")
    for option in ("--seeds", "--size", "--epochs"):
        assert f"{option}: 0 is not 1 or more" in says(pipeline, option, "0")
    assert "this is no pipeline" in says("configs/net.yaml")
    assert not Path("canary").exists() or not list(Path("canary").rglob("*.json"))
    assert "did you mean" in says(pipeline, "optim.lrr=1")


def test_teachers_from_disk_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were trained on the true labels."""
    pipeline = make_textures(root, HONEST[1:2])
    make = root / "configs" / "teacher.yaml"
    make.write_text("extends: net.yaml\nname: teacher\n", encoding="utf-8")
    assert main(["train", "configs/teacher.yaml", "train.epochs=1", "input.size=16"]) == 0
    assert main(["canary", str(pipeline)]) == 2
    assert "'teacher' is made by no round" in capsys.readouterr().err
