"""`goldfold bench speed`: rows follow from their raw samples, and what cannot be measured says why. Nothing here is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from goldfold.cli import main
from goldfold.errors import BadInput
from goldfold.pipeline.bench import speed as speed_module
from goldfold.pipeline.bench.memory import memory_in_child
from goldfold.pipeline.bench.page import page
from goldfold.pipeline.bench.plan import Plan, draw_competition, link_files
from goldfold.pipeline.bench.rows import CannotMeasure, Goal, Measurement, Row, conclude, figure_of, run_row, take_turns
from goldfold.pipeline.bench.speed import GROUPS, WITH_CONFIG, chosen, from_config, rows_of
from tests.pipeline.competitions import make_competition


def row(measure: Any) -> Row:
    return Row("some", "group", "something ÷ another", Goal("rate_ratio", 0.9), measure)


def sample(ratio: float) -> dict[str, float]:
    return {"amount": 10 * ratio, "seconds": 1.0, "base_amount": 20.0, "base_seconds": 2.0}


class TestRows:
    def test_figures_follow_from_samples(self) -> None:
        assert figure_of("rate_ratio", sample(0.8)) == pytest.approx(0.8)
        assert figure_of("seconds", {"seconds": 0.3}) == 0.3
        assert figure_of("growth", {"peak": 105.0, "base_peak": 100.0}) == pytest.approx(0.05)

    @pytest.mark.parametrize(("ratios", "reached"), [((0.5, 0.91, 1.2), True), ((0.5, 0.89, 1.2), False)])
    def test_the_median_is_judged(self, ratios: tuple[float, ...], reached: bool) -> None:
        found = conclude(Goal("rate_ratio", 0.9), Measurement(tuple(map(sample, ratios))))
        assert found["reached"] is reached
        assert found["figure"] == {
            key: pytest.approx(x) for key, x in zip(("min", "median", "max"), ratios, strict=True)
        }

    def test_less_is_better_for_seconds_and_growth(self) -> None:
        assert Goal("seconds", 0.5).reached(0.4)
        assert not Goal("seconds", 0.5).reached(0.5)
        assert Goal("growth", 0.05).reached(0.01)
        assert [Goal("rate_ratio", 0.95).text, Goal("seconds", 10).text, Goal("growth", 0.05).text] == [
            "≥ 0.95", "< 10 s", "< 5%"
        ]  # fmt: skip

    def test_a_spoilt_row_falls_short_whatever_its_figure(self) -> None:
        found = conclude(Goal("rate_ratio", 0.9), Measurement((sample(2.0),), spoilt="the score is worse"))
        assert (found["reached"], found["why"]) == (False, "the score is worse")

    def test_each_side_goes_first_in_turn(self) -> None:
        order: list[str] = []

        def side(name: str) -> Any:
            return lambda: (order.append(name), (1.0, 2.0))[1]

        samples = take_turns(3, side("ours"), side("base"))
        assert order == ["ours", "base", "base", "ours", "ours", "base"]
        assert samples == ({"amount": 1.0, "seconds": 2.0, "base_amount": 1.0, "base_seconds": 2.0},) * 3

    def test_a_sample_is_the_sum_of_its_turns(self) -> None:
        order: list[str] = []

        def side(name: str) -> Any:
            return lambda: (order.append(name), (1.0, float(len(order))))[1]

        samples = take_turns(2, side("ours"), side("base"), slices=2)
        assert order == ["ours", "base", "base", "ours", "base", "ours", "ours", "base"]
        assert [sample["amount"] for sample in samples] == [2.0, 2.0]
        assert [(sample["seconds"], sample["base_seconds"]) for sample in samples] == [(5.0, 5.0), (13.0, 13.0)]

    @pytest.mark.parametrize("error", [CannotMeasure("no CUDA device"), torch.OutOfMemoryError("full\nof it")])
    def test_a_row_that_fails_says_why_and_ends_alone(self, error: Exception) -> None:
        def fail() -> Measurement:
            raise error

        found = run_row(row(fail))
        assert (found["figure"], found["reached"]) == (None, None)
        assert found["why"] == " ".join(str(error).split())

    def test_the_page_marks_what_falls_short(self) -> None:
        records = [
            run_row(row(lambda: Measurement((sample(0.5),), {"backbone": "tiny"}, ("All of it.",)))),
            run_row(row(lambda: Measurement((sample(1.0),)))),
            run_row(row(lambda: (_ for _ in ()).throw(CannotMeasure("no CUDA device")))),
        ]
        host = {
            "cpu": "A chip",
            "cores": 2,
            "memory_gb": 1,
            "gpus": [],
            "system": "Linux",
            "load": 0.1,
            "versions": {"torch": "2"},
        }
        about = {
            "command": "goldfold bench speed",
            "measured": "2030-01-01T00:00",
            "seconds": 1.0,
            "repeats": 1,
            "quick": False,
        }
        text = page([{"host": host, "rows": records, **about}])
        assert "| 0.500 [0.500, 0.500] | **falls short** |" in text
        assert "| 1.000 [1.000, 1.000] | reached" in text
        assert "| not measured         | no CUDA device" in text
        assert "## A chip, 2 cores, no GPU" in text
        assert "- `some`: backbone tiny. All of it." in text


class TestPlan:
    def test_every_row_of_the_issue_is_there(self) -> None:
        rows = rows_of(Plan(Path()))
        assert list(dict.fromkeys(row.group for row in rows)) == list(GROUPS)
        assert len({row.name for row in rows}) == len(rows)
        assert {row.name for row in rows if row.group == "train-cpu"} == {
            f"train-cpu-{name}-{side}" for name in ("tf_efficientnet_lite0", "resnet18") for side in (96, 128, 224)
        }

    def test_rows_are_chosen_by_name_or_group(self) -> None:
        plan = Plan(Path())
        assert chosen(plan, ["help", "train-cpu-resnet18-96"]) == {"help", "train-cpu-resnet18-96"}
        assert len(chosen(plan, ["train-cpu"])) == 6
        assert chosen(plan, []) == {row.name for row in rows_of(plan)}
        with pytest.raises(BadInput, match=r"no row 'trains'.*train-cpu"):
            chosen(plan, ["trains"])

    def test_links_are_as_good_as_files(self, tmp_path: Path) -> None:
        photos = draw_competition(tmp_path, 2)
        linked = link_files(photos, tmp_path / "more", 5)
        assert len({path.name for path in linked}) == 5
        assert [path.read_bytes() for path in linked[:4]] == [path.read_bytes() for path in photos] * 2


def measured(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in record["rows"]}


def test_the_command_measures_and_writes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(project.rglob("*"))
    only = "train-cpu,train-gpu,tta,cache,trunk,fastai,help"
    arguments = ["bench", "speed", "--quick", "--only", only, "--write", "docs/page.md", "--repeats", "2"]
    if torch.cuda.is_available():
        only = only.replace("train-gpu,", "")
        arguments[4] = only
    assert main([*arguments, "optim.lr=0.002"]) == 0
    record = json.loads(Path("benchmarks-out/speed.json").read_text())
    rows = measured(record)
    # Every figure is recomputed from what was counted.
    for name in ("train-cpu-test_resnet-32", "tta", "cache", "trunk"):
        samples = rows[name]["samples"]
        ratios = [(s["amount"] / s["seconds"]) / (s["base_amount"] / s["base_seconds"]) for s in samples]
        assert len(ratios) == 2, rows[name]["why"]
        assert rows[name]["figure"]["median"] == pytest.approx(median(ratios))
        assert rows[name]["reached"] in (True, False)
        assert rows[name]["details"]["images"].startswith("48 drawn photographs")
    assert rows["help"]["figure"]["median"] == median(s["seconds"] for s in rows["help"]["samples"])
    assert {"score", "base_score", "wall_seconds"} <= set(rows["trunk"]["samples"][0])
    assert "Bottleneck: " in rows["train-cpu-test_resnet-32"]["notes"][0]
    if "fastai" not in sys.modules and rows["fastai"]["figure"] is None:
        assert rows["fastai"]["why"].startswith("fastai is not installed")
    if not torch.cuda.is_available():
        assert rows["train-gpu-test_resnet"]["why"] == "no CUDA device"
    assert {"cpu", "cores", "gpus", "versions", "load"} <= set(record["host"])
    written = Path("docs/page.md").read_text()
    assert written == Path("benchmarks-out/speed.md").read_text()
    assert all(row["title"] in written for row in record["rows"])
    assert "A quick trial" in written
    # Nothing else is left behind: no runs, no folds, no images.
    left = {path.relative_to(project).parts[0] for path in set(project.rglob("*")) - before}
    assert left == {"benchmarks-out", "docs"}

    # The page of several results, without measuring: another machine's, and one of this machine that has some rows anew.
    def as_written(name: str, values: dict[str, Any]) -> list[str]:
        Path(name).write_text(json.dumps(values))
        return ["--from", name]

    first = ["--from", "benchmarks-out/speed.json"]
    other = as_written("other.json", {**record, "host": {**record["host"], "cpu": "another"}})
    anew = as_written("anew.json", {**record, "rows": record["rows"][:1]})
    title = record["rows"][0]["title"]
    for results, sections, titles in ((first + other, 2, 2), (first + first, 1, 1), (anew + first, 2, 1)):
        assert main(["bench", "speed", *results, "--write", "both.md"]) == 0
        text = Path("both.md").read_text()
        assert (text.count("## "), text.count(title)) == (sections, titles)
        assert ("Rows of this run that another section shows: 1." in text) == (results == anew + first)
    assert f"wrote {Path('both.md')}" in capsys.readouterr().out


def test_a_configuration_takes_the_place_of_our_own(project: Path) -> None:
    config = make_competition(project, rows=24)
    arguments = ["bench", "speed", str(config), "augment.preset=flips", "--quick", "--only", "train", "--repeats", "1"]
    assert main(arguments) == 0
    (found,) = json.loads(Path("benchmarks-out/speed.json").read_text())["rows"]
    assert (found["name"], found["details"]["augment"]) == ("train", "flips")
    assert found["details"]["backbone"] == "test_efficientnet"
    assert not Path("runs").exists()


def test_groups_with_a_configuration(project: Path) -> None:
    from goldfold.config import load_config
    from goldfold.paths import Workspace

    config = load_config(make_competition(project, rows=24))
    rows = rows_of(Plan(Path(), given=from_config(config, Workspace(Path()))))
    assert list(dict.fromkeys(row.group for row in rows)) == list(WITH_CONFIG)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "nonesuch"], "there is no row 'nonesuch'"),
        (["--repeats", "0"], "--repeats: must be above 0"),
        (["--seconds", "-1"], "--seconds: must be above 0"),
        (["--from", "speed.json"], "there is nowhere to write the page"),
        (["--from", "other.json", "--write", "page.md"], "is no result of goldfold bench speed"),
        (["nonesuch.yaml"], "nonesuch.yaml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.json").write_text("{}")
    assert main(["bench", "speed", "--quick", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert "Traceback" not in error
    assert not Path("benchmarks-out").exists()


def test_timms_loop_takes_turns_with_ours(project: Path) -> None:
    assert main(["bench", "speed", "--quick", "--only", "timm", "--repeats", "1"]) == 0
    rows = json.loads(Path("benchmarks-out/speed.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["timm", "timm-tuned"]  # as its script comes, and with what ours found out
    for found in rows:
        assert found["why"] is None, found["why"]
        assert found["samples"][0]["base_amount"] >= 8
        assert found["details"]["rival"]["library"].startswith("timm ")
        assert "Our bare steps" in found["notes"][0]


def test_peaks_of_memory_are_of_the_training(tmp_path: Path) -> None:
    plan = Plan(tmp_path, quick=True)
    subject = plan.subject("memory", "test_resnet", 32)
    photos = [str(path) for path in sorted((tmp_path / "drawn/data/images").iterdir())]
    peaks = memory_in_child(subject.config.model_dump(mode="json"), 20, photos, str(tmp_path / "memory"))
    assert 0 < peaks["own_peak"] <= peaks["peak"]


def test_results_are_kept_row_by_row(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> Measurement:
        raise KeyboardInterrupt

    rows = [Row("first", "g", "first", Goal("seconds", 1), lambda: Measurement(({"seconds": 0.5},))),
            Row("second", "g", "second", Goal("seconds", 1), stop)]  # fmt: skip
    monkeypatch.setattr(speed_module, "rows_of", lambda plan: rows)
    with pytest.raises(KeyboardInterrupt):
        speed_module.bench_speed(Plan(Path()), [], ["goldfold", "bench", "speed"], Path("out"))
    assert [row["name"] for row in json.loads(Path("out/speed.json").read_text())["rows"]] == ["first"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_rows_are_measured_on_all_cores_and_on_few(project: Path) -> None:
    arguments = ["bench", "speed", "--quick", "--only", "train-gpu,train-gpu-4cores", "--repeats", "1"]
    assert main(arguments) == 0
    for found in json.loads(Path("benchmarks-out/speed.json").read_text())["rows"]:
        if found["figure"] is None:
            assert "needs 4 cores" in found["why"]
            continue
        assert found["details"]["machine"]["precision"] == "bf16"
        if found["group"] == "train-gpu-4cores":
            assert found["details"]["cores"] == 4
