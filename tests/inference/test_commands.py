"""From training to the kernel by the commands: the engine submits what ``goldfold submit`` submits, ``goldfold budget`` plans it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold.cli import main
from goldfold.inference.run import main as kernel
from tests.contract.test_formats import documented, section, written
from tests.pipeline.competitions import make_competition


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs and their ensemble, with metadata columns, seeds, chosen views, larger test images and local contrast."""
    root = tmp_path_factory.mktemp("commands")
    torch.set_num_threads(1)
    with contextlib.chdir(root), patch("goldfold.kaggle.export.write_wheels"):
        config = str(make_competition(root, "binary", rows=30, test_rows=9))
        columns = ["model.metadata.categorical=[site]", "train.seeds=[7]", "tta.views=auto", "tta.candidates=flip"]
        assert main(["train", config, "train.epochs=1", "--run", "first", *columns]) == 0
        second = ["model.backbone=test_resnet", "input.size=20", "input.cache_size=28", "input.local_mean=subtract"]
        sizes = ["tta.size=32", "tta.batch_size=4"]
        assert main(["train", config, "train.epochs=1", "--run", "second", *sizes, *second]) == 0
        blend = ["--method", "mean", "--calibration", "temperature"]
        assert main(["ensemble", "first", "second", "--name", "both", *blend]) == 0
        (root / "input" / "competitions").mkdir(parents=True)
        (root / "input" / "competitions" / "tiny").symlink_to(root / "data" / "tiny")
        yield root


def submitted(source: str) -> pd.DataFrame:
    """What the engine makes of a source's pack."""
    assert main(["export", source, "--to", f"input/{source}-pack"]) == 0
    env = {
        "GOLDFOLD_INPUT": "input",
        "GOLDFOLD_WORKING": f"working/{source}",
        "GOLDFOLD_SCRATCH": "scratch",
        "GOLDFOLD_PACK": f"{source}-pack",
    }
    assert kernel(env) == 0
    return pd.read_csv(f"working/{source}/submission.csv")


def test_the_engine_submits_what_goldfold_submit_does(project: Path) -> None:
    assert main(["submit", "both"]) == 0
    assert submitted("both").equals(pd.read_csv("submissions/both.csv"))
    report = json.loads(Path("working/both/inference.json").read_text())
    assert report["complete"]
    done = {each["name"]: (each["folds"], each["of"]) for each in report["members"]}
    assert done == {"first": (4, 4), "second": (2, 2)}
    known = documented("inference.json")
    report["failed"] = {"first fold0": "why"}  # as where one could not be used
    assert written(report, known) == known


def test_the_engine_predicts_a_run_as_goldfold_predict_does(project: Path) -> None:
    assert main(["predict", "second"]) == 0
    found = submitted("second").set_index("id")["label"]
    table = pd.read_parquet("runs/second/predict-test.parquet").set_index("id")["p_1"].loc[found.index]
    assert np.array_equal(found.to_numpy(dtype=np.float32), table.to_numpy())
    assert table.nunique() > 5


def test_budget_plans_on_the_speed_of_this_machine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch("goldfold.pipeline.speed.SECONDS", 0.0):
        assert main(["budget", "both", "--hours", "9", "--images", "500", "--sample", "5"]) == 0
    said = capsys.readouterr().out
    assert "both: 500 images in 9 hours, 8.82 of them for work" in said
    assert "plan: 6 of 6 networks" in said
    folder = project / "ensembles" / "both"
    plan, frontier = pd.read_csv(folder / "budget.csv"), pd.read_csv(folder / "frontier.csv")
    assert sorted(plan["member"]) == ["first"] * 4 + ["second"] * 2
    assert plan["hours"].is_monotonic_increasing
    assert (plan["seconds"] > 0).all()
    assert plan["score"].iloc[-1] == json.loads((folder / "ensemble.json").read_text())["cross_fitted"]["score"]
    assert set(frontier["members"]) == {"first", "second", "first + second"}
    best = frontier[frontier["frontier"]]
    assert best["score"].is_monotonic_increasing
    assert best["score"].max() == frontier["score"].max()
    assert (folder / "budget.png").read_bytes().startswith(b"\x89PNG")


def test_budget_on_given_speeds(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speeds = ["--img-per-second", "ALL=100", "--img-per-second", "second=50", "--read-per-second", "1000"]
    command = ["budget", "both", "--images", "36000", *speeds]
    folder = project / "ensembles" / "both"
    with patch("goldfold.pipeline.budgeting.draw_budget"):
        assert main([*command, "--hours", "1"]) == 0
        whole = pd.read_csv(folder / "budget.csv")
        assert main([*command, "--hours", "0.2"]) == 0
        part = pd.read_csv(folder / "budget.csv")
        assert main([*command, "--hours", "1", "--gpus", "2"]) == 0
        assert "2 GPUs" in capsys.readouterr().out
        double = pd.read_csv(folder / "budget.csv")
    # 360 s a network of the first (with one view), 720 of the second; 3528 s of work in an hour.
    first = whole.loc[whole["member"] == "first", "seconds"]
    assert set(whole.loc[whole["member"] == "second", "seconds"]) == {720.0}
    assert first.min() == 360.0
    assert whole["hours"].iloc[-1] == pytest.approx(whole["seconds"].sum() / 3600, abs=1e-6)
    assert list(part["member"]) == ["first"]
    assert part["hours"].iloc[-1] <= 0.2 * 0.98
    with patch("goldfold.pipeline.budgeting.draw_budget"):
        assert main([*command, "--hours", "0.05"]) == 0
    # 360 s a network, and less than 180 s: the kernel answers some rows all the same.
    assert re.search(r"'first' would answer about 1[67]\d{3} of 36000 images", capsys.readouterr().out)
    assert double["hours"].iloc[-1] == pytest.approx(whole["hours"].iloc[-1] / 2, abs=1e-6)
    with patch("goldfold.pipeline.budgeting.draw_budget"):
        assert main(command) == 0
    assert "36000 images in 9 hours" in capsys.readouterr().out


@pytest.mark.parametrize("leaky", [False, True])
def test_the_picture_of_a_leaky_ensemble_says_so(leaky: bool, project: Path) -> None:
    path = project / "ensembles" / "both" / "ensemble.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"leaky": leaky}))
    speeds = ["--img-per-second", "ALL=100", "--read-per-second", "1000"]
    try:
        with patch("goldfold.pipeline.budgeting.draw_budget") as draw:
            assert main(["budget", "both", "--hours", "1", "--images", "100", *speeds]) == 0
    finally:
        path.write_bytes(before)
    assert draw.call_args.args[4] == ("both (leaky)" if leaky else "both")


def test_columns_of_the_budgets_tables(project: Path) -> None:
    with patch("goldfold.pipeline.budgeting.draw_budget"):
        speeds = ["--img-per-second", "ALL=100", "--read-per-second", "1000"]
        assert main(["budget", "both", "--hours", "1", "--images", "100", *speeds]) == 0
    page = section("Time budget")
    for name in ("budget", "frontier"):
        described = page.partition(f"`{name}.csv` has")[2].partition("\n\n")[0]
        columns = list(pd.read_csv(project / "ensembles" / "both" / f"{name}.csv").columns)
        assert re.findall(r"`([a-z_]+)`", described)[: len(columns)] == columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "--hours", "1", "--images", "10"], "it is no ensemble; there are both"),
        (["both", "--hours", "0", "--images", "10"], "--hours: 0 is not above 0"),
        (["both", "--hours", "1", "--images", "10", "--img-per-second", "third=4"], "'third' is no member"),
        (["both", "--hours", "1", "--images", "10", "--img-per-second", "fast"], "is not RUN=X"),
    ],
)
def test_a_budget_that_cannot_be_made_is_one_line(
    project: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["budget", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
