"""What a real training and a real ensemble leave in W&B's offline files: nothing that does not lie on disk already."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from goldfold import files
from goldfold.cli import main
from goldfold.errors import GoldfoldError
from goldfold.tracking import read_metrics
from tests.pipeline.competitions import make_competition
from tests.tracking.offline import OfflineRun, read_runs

OFFLINE = ["tracking.wandb=true", "tracking.mode=offline"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tracked runs (one of optimistic scores, a leaky student) and an ensemble, in a project under git."""
    root = tmp_path_factory.mktemp("tracked")
    torch.set_num_threads(1)
    with contextlib.chdir(root):
        config = str(make_competition(root, rows=24, test_rows=6))
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for command in (["init", "-q"], ["add", "configs"], ["commit", "-qm", "first"]):
            subprocess.run([*git, *command], check=True, timeout=60)
        once = ["train.epochs=2", *OFFLINE, "tracking.tags=[first]"]
        assert main(["train", config, *once, "tracking.mistakes=3"]) == 0
        best = ["train.keep=best", "train.seed=1", "--run", "best", "tracking.mistakes=0"]
        assert main(["train", config, *once, *best]) == 0
        assert main(["ensemble", "tiny", "best", "--name", "both"]) == 0
        student = ["teacher.runs=[tiny]", "teacher.leaky=true", "teacher.pseudo.labels=hard", "--run", "student"]
        assert main(["train", config, *once, *student, "tracking.mistakes=0", "tracking.project=other"]) == 0
    return root


@pytest.fixture(scope="module")
def runs(trained: Path) -> dict[str, OfflineRun]:
    return read_runs(trained)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_a_fold_in_a_group_and_one_for_the_whole(runs: dict[str, OfflineRun]) -> None:
    found = {name: (run.group, run.job_type, run.project, run.exit_code) for name, run in runs.items()}
    expected = {"both-ensemble": ("both", "ensemble", "tiny", 0)}
    for run, stage, project in (
        ("tiny", "train", "tiny"),
        ("best", "train", "tiny"),
        ("student", "pseudo_label", "other"),
    ):
        expected |= {f"{run}-fold{fold}": (run, stage, project, 0) for fold in (0, 1)}
        expected[f"{run}-summary"] = (run, "summary", project, 0)
    assert found == expected
    assert len({run.id for run in runs.values()}) == 10


@pytest.mark.parametrize("fold", [0, 1])
def test_the_curves_are_those_of_metrics_jsonl(fold: int, trained: Path, runs: dict[str, OfflineRun]) -> None:
    lines = read_metrics(trained / f"runs/tiny/fold{fold}/metrics.jsonl")
    history = [
        {key: value for key, value in point.items() if key[0] != "_"} for point in runs[f"tiny-fold{fold}"].history
    ]
    assert len(lines) == 2
    assert history == lines  # every value, and nothing that the file lacks


def test_config_commit_and_data_are_named(trained: Path, runs: dict[str, OfflineRun]) -> None:
    record = read(trained / "runs/tiny/run.json")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=trained, capture_output=True, text=True, check=True
    ).stdout
    for name in ("tiny-fold0", "tiny-summary"):
        config = runs[name].config
        assert config["optim"]["lr"] == 0.01
        assert config["train"]["epochs"] == 2
        assert config["goldfold"]["git"] == commit.strip()
        assert config["goldfold"]["inputs"] == record["inputs"]
        assert config["goldfold"]["inputs"]["train_csv"] == files.sha256_file(trained / "data/tiny/train.csv")
    members = runs["both-ensemble"].config["members"]
    assert members["tiny"] == {key: record[key] for key in ("fingerprint", "inputs", "git")}


def test_the_summary_has_the_scores_of_cv_json(trained: Path, runs: dict[str, OfflineRun]) -> None:
    cv, summary = read(trained / "runs/tiny/cv.json"), runs["tiny-summary"].summary
    assert summary["objective"] == summary["cv/mean"] == cv["mean"]
    assert summary["cv/std"] == cv["std"]
    assert {name: summary[f"oof/{name}"] for name in cv["oof"]} == cv["oof"]
    assert [summary[f"folds/{fold['fold']}"] for fold in cv["folds"]] == [fold["macro_f1"] for fold in cv["folds"]]


def test_the_ensemble_has_its_cross_fitted_score_and_weights(trained: Path, runs: dict[str, OfflineRun]) -> None:
    record, summary = read(trained / "ensembles/both/ensemble.json"), runs["both-ensemble"].summary
    assert summary["objective"] == summary["cross_fitted/score"] == record["cross_fitted"]["score"]
    assert summary["cv/score"] == record["cv"]["score"]
    assert summary["cross_fitted/accuracy"] == record["cross_fitted"]["extra"]["accuracy"]
    for member in record["members"]:
        assert summary[f"members/{member['name']}/weight"] == member["weight"]


def test_scores_that_flatter_are_marked(runs: dict[str, OfflineRun]) -> None:
    for name, run in runs.items():
        for mark, marked in (("optimistic", ("best", "both")), ("leaky", ("student",))):
            assert run.summary[mark] is name.startswith(marked), name
            assert (mark in run.tags) is name.startswith(marked)
        assert "first" in run.tags


def test_the_worst_mistakes_are_shown(trained: Path, runs: dict[str, OfflineRun]) -> None:
    summary = runs["tiny-summary"].summary
    assert len(summary["mistakes.captions"]) == 3
    for caption in summary["mistakes.captions"]:
        assert (trained / f"data/tiny/images/{caption.split(':')[0]}.png").exists()
    for name in summary["mistakes.filenames"]:
        assert (runs["tiny-summary"].folder / "files" / name).stat().st_size > 100
    assert "mistakes.captions" not in runs["best-summary"].summary  # tracking.mistakes=0
    assert not list(runs["best-summary"].folder.rglob("*.png"))


@pytest.mark.parametrize(("name", "artifact"), [("tiny-summary", "run/tiny"), ("both-ensemble", "ensemble/both")])
def test_files_go_by_their_manifest(name: str, artifact: str, trained: Path, runs: dict[str, OfflineRun]) -> None:
    kept = runs[name].artifacts[artifact]
    folder = trained / ("runs/tiny" if artifact == "run/tiny" else "ensembles/both")
    listed = {entry["path"]: entry for entry in read(Path(kept["manifest.json"]))["files"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == there - {"wandb.json"}
    for path, entry in listed.items():
        assert (entry["bytes"], entry["sha256"]) == ((folder / path).stat().st_size, files.sha256_file(folder / path))
    assert {"cv.json", "config.yaml"} <= set(kept) if name == "tiny-summary" else "ensemble.json" in kept


def test_what_is_reported_is_not_reported_again(trained: Path) -> None:
    before = sorted((trained / "wandb").glob("offline-run-*"))
    with contextlib.chdir(trained):
        assert main(["train", "configs/tiny.yaml", "train.epochs=2", *OFFLINE]) == 0
        assert main(["ensemble", "tiny", "best", "--name", "both"]) == 0
    assert sorted((trained / "wandb").glob("offline-run-*")) == before


def test_the_marker_is_as_the_formats_page_says(trained: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    section = page.partition("\n## wandb.json\n")[2].partition("\n## ")[0]
    for folder, scores in (("runs/tiny", "cv.json"), ("ensembles/both", "ensemble.json")):
        record = read(trained / folder / "wandb.json")
        assert record == {"scores_sha256": files.sha256_file(trained / folder / scores)}
        assert all(f"| `{key}` |" in section for key in record)


# --- a training that is cut off ----------------------------------------------------------------------------------------


def test_a_resumed_fold_goes_on_with_its_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from goldfold.training import loop

    config = str(make_competition(project, rows=24, test_rows=6))
    real, epochs = loop.save_progress, list[int]()

    def cut_off(*arguments: Any) -> None:
        real(*arguments)
        epochs.append(1)
        if len(epochs) == 2:
            raise GoldfoldError("the power failed")

    monkeypatch.setattr(loop, "save_progress", cut_off)
    command = ["train", config, "train.epochs=3", "--fold", "0", *OFFLINE]
    assert main(command) == 1
    first = read_runs(project)["tiny-fold0"]
    assert [point["epoch"] for point in first.history] == [1, 2]
    assert first.exit_code == 1  # W&B shows it as failed
    monkeypatch.setattr(loop, "save_progress", real)
    assert main(command) == 0
    second = read_runs(project)["tiny-fold0"]
    assert second.folder != first.folder
    assert second.id == first.id
    assert [point["epoch"] for point in second.history] == [1, 2, 3]  # whole, whichever file is sent
    assert second.exit_code == 0
    assert (project / "runs/tiny/fold0/DONE").exists()


def test_a_training_outlives_its_tracker(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at the address, and the run's folder is as it is without W&B."""
    from goldfold.tracking import wandb_run

    monkeypatch.setattr(wandb_run, "START_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    config = str(make_competition(project, rows=24, test_rows=6))
    assert main(["train", config, "train.epochs=1"]) == 0
    tracked = ["train.epochs=1", "--run", "tracked", "tracking.wandb=true"]
    assert main(["train", config, *tracked]) == 0
    runs = read_runs(project)
    assert set(runs) == {"tracked-fold0", "tracked-fold1", "tracked-summary"}
    # Only the first fold waited for the network.
    assert len(list((project / "wandb").glob("run-*"))) == 1
    plain, other = project / "runs/tiny", project / "runs/tracked"
    for name in ("fold0/metrics.jsonl", "fold1/oof.parquet", "fold1/model.safetensors"):
        assert (plain / name).read_bytes() == (other / name).read_bytes()
    assert {path.name for path in other.iterdir()} - {path.name for path in plain.iterdir()} == {"wandb.json"}


def test_a_full_disk_of_the_tracker_is_no_failure(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def init(**options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", init)
    config = str(make_competition(project, rows=24, test_rows=6))
    assert main(["train", config, "train.epochs=1", *OFFLINE]) == 0
    assert (project / "runs/tiny/cv.json").exists()
    assert not (project / "runs/tiny/wandb.json").exists()  # it will be reported another time
    err = capsys.readouterr().err
    assert err.count("W&B could not start (OSError: [Errno 28] No space left on device)") == 3


def test_a_missing_package_is_told_before_anything_is_decoded(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    config = str(make_competition(project, rows=24, test_rows=6))
    assert main(["train", config, *OFFLINE]) == 2
    assert "goldfold: tracking.wandb: the package wandb is not installed" in capsys.readouterr().err
    assert not (project / "runs").exists()
    assert not (project / ".cache").exists()
