"""Rounds through the command line: what fails loses nothing else, what is finished is left alone, what leaked says so."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from goldfold.cli import main
from goldfold.errors import BadInput, GoldfoldError
from goldfold.metrics import get_metric, score
from goldfold.pipeline import stages
from goldfold.pipeline.paired import Interval
from goldfold.pipeline.rounds_report import RoundRow, RoundTable, rounds_page, rounds_text
from goldfold.tasks import Task
from goldfold.training import FoldJob
from tests.pipeline.competitions import CLASSES, make_competition
from tests.pipeline.test_rounds_graph import TRAIN, distill, ensemble, pseudo, train, write

QUICK = ["train.epochs=1"]
OTHER = {"train.seed": 5}


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def state(*folders: str) -> dict[Path, tuple[int, bytes]]:
    """Every file of some folders with its time and bytes."""
    found = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def fail_fold(monkeypatch: pytest.MonkeyPatch, run: str, fold: int, error: BaseException) -> list[tuple[str, int]]:
    """Let one fold fail where it would be trained; returns the folds that were begun, as (run, fold)."""
    real, begun = stages.train_fold, list[tuple[str, int]]()

    def failing(job: FoldJob, *arguments: Any) -> Any:
        begun.append((job.run, job.fold))
        if (job.run, job.fold) == (run, fold):
            raise error
        return real(job, *arguments)

    monkeypatch.setattr(stages, "train_fold", failing)
    return begun


class TestFailures:
    def test_a_failed_fold_does_not_lose_the_others(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(make_competition(project, rows=24, test_rows=6, folds={"n": 3}))
        with monkeypatch.context() as patch:
            begun = fail_fold(patch, "tiny", 1, GoldfoldError("the loss is nan; lower optim.lr"))
            assert main(["train", config, *QUICK]) == 1
        assert begun == [("tiny", 0), ("tiny", 1), ("tiny", 2)]
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
        assert "tiny: fold1 failed: the loss is nan; lower optim.lr" in line
        assert "fold0" not in line
        assert not Path("runs/tiny/cv.json").exists()
        before = state("runs/tiny/fold0", "runs/tiny/fold2")
        begun = fail_fold(monkeypatch, "nobody", 0, GoldfoldError(""))
        assert main(["train", config, *QUICK]) == 0
        assert begun == [("tiny", 1)]
        assert state("runs/tiny/fold0", "runs/tiny/fold2") == before
        assert Path("runs/tiny/cv.json").exists()

    def test_a_full_gpu_while_teachers_answer_is_one_folds_failure(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(make_competition(project, rows=24, test_rows=6))
        real = stages.make_job

        def full(*arguments: Any) -> Any:
            if arguments[4] == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*arguments)

        monkeypatch.setattr(stages, "make_job", full)
        assert main(["train", config, *QUICK]) == 1
        err = capsys.readouterr().err
        assert "tiny: fold0 failed: runs/tiny/fold0: the GPU's memory is full; lower tta.batch_size" in err
        assert Path("runs/tiny/fold1/DONE").exists()

    def test_folds_that_fail_for_one_reason_are_one_line(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(make_competition(project, rows=24, test_rows=6))
        assert main(["train", config, "optim.lr=1e38", "optim.name=sgd"]) == 1
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
        assert "fold0" in line
        assert "fold1" in line
        assert "optim.lr" in line

    def test_a_kill_stops_at_once(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_competition(project, rows=24, test_rows=6)
        begun = fail_fold(monkeypatch, "a", 0, KeyboardInterrupt())
        assert main(["run", write(train("a"), train("b")), *QUICK]) == 130
        assert begun == [("a", 0)]

    def test_bad_input_of_a_round_does_not_stop_those_that_do_not_need_it(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(make_competition(project, rows=24, test_rows=6))
        assert main(["train", config, *QUICK, "--run", "b"]) == 0
        capsys.readouterr()
        path = write(train("a"), train("b", **OTHER), pseudo("p", "b"), train("c"))  # b holds another experiment
        assert main(["run", path, *QUICK]) == 2
        found = capsys.readouterr()
        (line,) = (line for line in found.err.splitlines() if line.startswith("goldfold: "))
        assert "train b (runs/b: " in line
        assert "pseudo_label p (it needs b)" in line
        assert re.search(r"^2 train +b +failed", found.out, re.MULTILINE)
        assert re.search(r"^4 train +c ", found.out, re.MULTILINE)
        states = {row["name"]: row["state"] for row in read("pipelines/rounds.json")["rounds"]}
        assert states == {"a": "done", "b": "failed", "p": "skipped", "c": "done"}

    @pytest.mark.parametrize("error", [RuntimeError("cuDNN error: x\nsecond line"), OSError(28, "No space left")])
    def test_what_nobody_foresaw_is_one_folds_failure(
        self, error: Exception, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(make_competition(project, rows=24, test_rows=6))
        begun = fail_fold(monkeypatch, "tiny", 0, error)
        assert main(["train", config, *QUICK]) == 1
        assert begun == [("tiny", 0), ("tiny", 1)]
        assert Path("runs/tiny/fold1/DONE").exists()
        err = capsys.readouterr().err
        (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
        said = str(error).splitlines()[0]
        assert f"tiny: fold0 failed: {type(error).__name__}: {said}; the same command" in line
        assert "Traceback" in err
        assert "in failing" in err  # where it came from

    def test_what_nobody_foresaw_in_making_a_job_is_one_folds_failure(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_competition(project, rows=24, test_rows=6)
        real = stages.make_job

        def failing(*arguments: Any) -> Any:
            if arguments[4] == 0:
                raise ValueError
            return real(*arguments)

        monkeypatch.setattr(stages, "make_job", failing)
        assert main(["run", write(train("a"), {"kind": "submit", "source": "a"}), *QUICK]) == 1
        assert "train a (a: fold0 failed: ValueError; the same command" in capsys.readouterr().err
        assert Path("runs/a/fold1/DONE").exists()

    def test_rounds_that_need_a_failed_run_are_skipped(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_competition(project, rows=24, test_rows=6)
        path = write(
            train("a"),
            train("b", **OTHER),
            pseudo("p", "a"),
            distill("d", "b"),
            ensemble("e", "a", "b"),
            {"kind": "submit", "source": "e"},
            ensemble("f", "b", "d"),
            {"kind": "submit", "source": "f"},
        )
        with monkeypatch.context() as patch:
            fail_fold(patch, "a", 0, GoldfoldError("out of memory"))
            assert main(["run", path, *QUICK]) == 1
        found = capsys.readouterr()
        assert "round 3/8: pseudo_label p: skipped, it needs a" in found.err
        (line,) = (line for line in found.err.splitlines() if line.startswith("goldfold: "))
        for name in ("train a (a: fold0 failed: out of memory", "pseudo_label p (it needs a", "submit e (it needs e"):
            assert name in line
        states = {row["name"]: row["state"] for row in read("pipelines/rounds.json")["rounds"]}
        assert states == {"a": "failed", "b": "done", "p": "skipped", "d": "done", "e": "skipped", "f": "done"}
        assert Path("submissions/f.csv").exists()
        assert Path("runs/a/fold1/DONE").exists()
        assert re.search(r"^1 train +a +failed", found.out, re.MULTILINE)
        begun = fail_fold(monkeypatch, "nobody", 0, GoldfoldError(""))
        assert main(["run", path, *QUICK]) == 0
        assert begun == [("a", 0), ("p", 0), ("p", 1)]
        assert {row["state"] for row in read("pipelines/rounds.json")["rounds"]} == {"done"}

    @pytest.mark.parametrize(
        ("codes", "expected"),
        [({"a": 2}, 2), ({"a": 1}, 1), ({"a": 2, "b": 2}, 2), ({"a": 2, "b": 1}, 1), ({"a": 1, "b": 2}, 1)],
        ids=str,
    )
    def test_the_exit_code_is_2_where_every_failure_was_bad_input(
        self,
        codes: dict[str, int],
        expected: int,
        project: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A round that is skipped for another's sake does not count."""
        make_competition(project, rows=24, test_rows=6)
        real = stages.train_fold

        def failing(job: FoldJob, *arguments: Any) -> Any:
            code = codes.get(job.run)
            if code == 2:  # of one fold's own folder, which does not stop the others
                raise BadInput(job.paths.folder, "another process is training this fold", "wait for it")
            if code == 1:
                raise GoldfoldError("the loss is nan; lower optim.lr")
            return real(job, *arguments)

        monkeypatch.setattr(stages, "train_fold", failing)
        assert main(["run", write(train("a"), train("b", **OTHER), pseudo("p", "a")), *QUICK]) == expected
        (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("goldfold: "))
        assert "pseudo_label p (it needs a)" in line
        states = {row["name"]: row["state"] for row in read("pipelines/rounds.json")["rounds"]}
        assert states == {"a": "failed", "b": "failed" if "b" in codes else "done", "p": "skipped"}


def all_kinds() -> str:
    return write(
        train("a"),
        train("b", **OTHER),
        ensemble("e", "a", "b"),
        pseudo("p", "e"),
        distill("d", "a"),
        ensemble("f", "a", "p", "d"),
        {"kind": "submit", "source": "f"},
    )


class TestSkipping:
    def test_nothing_is_done_twice(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_competition(project, rows=24, test_rows=6)
        assert main(["run", all_kinds(), *QUICK]) == 0
        folders = ("runs", "ensembles", "submissions", "pipelines", "folds")
        before, table = state(*folders), capsys.readouterr().out
        assert main(["run", all_kinds(), *QUICK]) == 0
        found = capsys.readouterr()
        assert "epoch" not in found.err
        assert "training rows" not in found.err
        assert found.out == table
        assert state(*folders) == before

    def test_a_changed_teacher_is_noticed_downstream(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_competition(project, rows=24, test_rows=6)
        assert main(["run", all_kinds(), *QUICK]) == 0
        for path in Path("runs/b").rglob("*"):
            if path.is_file():
                path.unlink()  # the ensemble's member is trained anew, with other settings
        changed = write(
            train("a"), train("b", **OTHER, **{"optim.lr": 0.02}), ensemble("e", "a", "b"), pseudo("p", "e")
        )
        before = read("ensembles/e/ensemble.json")["fingerprint"]
        capsys.readouterr()
        assert main(["run", changed, *QUICK]) == 2
        assert read("ensembles/e/ensemble.json")["fingerprint"] != before
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
        assert "runs/p" in line
        assert "teacher e" in line

    def test_another_pool_of_images_is_noticed(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_competition(project, rows=24, test_rows=6)
        pool = Path("data/pool")
        pool.mkdir()
        for name in ("u1", "u2"):
            (pool / f"{name}.png").write_bytes(Path("data/tiny/images/000x.png").read_bytes())
        (pool / "pool.csv").write_text("id\nu1\nu2\n")
        command = ["run", write(train("a"), pseudo("p", "a")), *QUICK]
        command += ["competition.unlabelled=[{csv: data/pool/pool.csv, image_path: 'data/pool/{id}.png'}]"]
        assert main(command) == 0
        record = read("runs/p/run.json")["inputs"]
        assert {"unlabelled_csv_0", "unlabelled_images_0"} <= record.keys()
        assert "unlabelled_csv_0" not in read("runs/a/run.json")["inputs"]  # which labels none
        (pool / "pool.csv").write_text("id\nu1\n")
        capsys.readouterr()
        assert main(command) == 2
        assert "the file behind unlabelled_csv_0" in capsys.readouterr().err


class TestTable:
    def test_differences_are_paired_by_fold(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_competition(project, rows=36, test_rows=6, folds={"n": 3}, competition={"metric": "log_loss"})
        path = write(
            train("a"), train("b", **OTHER), ensemble("e", "a", "b"), pseudo("p", "b"), distill("d", "e", set=OTHER)
        )
        assert main(["run", path, *QUICK]) == 0
        out = capsys.readouterr().out
        rows = {row["name"]: row for row in read("pipelines/rounds.json")["rounds"]}
        cv = {name: [fold["log_loss"] for fold in read(f"runs/{name}/cv.json")["folds"]] for name in "abpd"}
        record = read("ensembles/e/ensemble.json")
        best = min(record["members"], key=lambda member: member["score"])["name"]
        blend = [fold["score"] for fold in record["cross_fitted"]["folds"]]
        # A student has to beat the first plain run of its own experiment file, whoever taught it.
        for name, mine, against in (("p", cv["p"], "a"), ("d", cv["d"], "a"), ("e", blend, best)):
            gains = [theirs - own for own, theirs in zip(mine, cv[against], strict=True)]  # lower is better
            found = rows[name]["difference"]
            assert (found["against"], found["folds"]) == (against, 3)
            assert found["mean"] == pytest.approx(fmean(gains))
            half = stats.t.ppf(0.975, 2) * stdev(gains) / math.sqrt(3)
            assert found["high"] - found["mean"] == pytest.approx(half)
            sign = "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "within noise"
            assert found["verdict"] == sign
            text = f"{found['mean']:+.4f} ± {half:.4f}"
            assert re.search(rf" {name}( \(mean\))? .*{re.escape(text)} +{against} +{sign}", out)
        assert rows["a"]["difference"] is None
        assert rows["e"]["cross_fitted"] == record["cross_fitted"]["score"]
        assert rows["p"]["oof"] == read("runs/p/cv.json")["oof"]["log_loss"]
        assert "the sign is turned" in out
        assert Path("pipelines/rounds.md").read_text().count("within noise") >= 1

    def test_a_student_without_a_plain_run_is_compared_with_its_teacher(self, project: Path) -> None:
        make_competition(project, rows=24, test_rows=6)
        Path("configs/small.yaml").write_text("extends: tiny.yaml\nname: small\n")
        student = {**pseudo("p", "e", "a"), "experiment": "small.yaml"}
        assert main(["run", write(train("a"), train("b", **OTHER), ensemble("e", "a", "b"), student), *QUICK]) == 0
        assert read("pipelines/rounds.json")["rounds"][3]["difference"]["against"] == "e"

    def test_verdicts_and_marks_are_shown(self) -> None:
        rows = (
            RoundRow(1, "train", "a", mean=0.8, std=0.01, oof=0.8, spread={"seeds": (3, 0.004)}),
            RoundRow(2, "pseudo_label", "p", leaky=True, mean=0.9, oof=0.9, against="a", difference=Interval(5, 0.1, 0.05, 0.15), verdict="better"),
            RoundRow(3, "distill", "d", mean=0.7, oof=0.7, against="p", against_leaky=True, difference=Interval(5, -0.1, -0.15, -0.05), verdict="worse"),
            RoundRow(4, "ensemble", "e", "skipped", "it needs z"),
        )  # fmt: skip
        table = RoundTable("name", "accuracy", True, rows)
        for text in (rounds_text(table, {"a": {"accuracy": 0.75}}), rounds_page(table, "goldfold run x")):
            assert re.search(r"2 pseudo_label *[ |] *p \(leaky\) .*\+0\.1000 ± 0\.0500 *[ |] *a *[ |] *better", text)
            assert re.search(r"3 distill *[ |] *d .*-0\.1000 ± 0\.0500 *[ |] *p \(leaky\) *[ |] *worse", text)
            assert "OOF over 3 seeds: standard deviation 0.0040" in text
            assert "round 4 e: skipped: it needs z" in text
        assert "0.7500" in rounds_text(table, {"a": {"accuracy": 0.75}})


class TestLeaks:
    def test_a_leak_is_marked_wherever_it_goes(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_competition(project, rows=24, test_rows=6)
        path = write(
            train("a"),
            pseudo("leak", "a", leaky=True),
            ensemble("mixed", "a", "leak"),
            distill("student", "mixed"),
            pseudo("honest", "a"),
            {"kind": "submit", "source": "student"},
        )
        assert main(["run", path, *QUICK]) == 0
        found = capsys.readouterr()
        marks = {"a": False, "leak": True, "student": True, "honest": False}
        for name, leaky in marks.items():
            assert read(f"runs/{name}/run.json")["leaky"] is leaky
            assert read(f"runs/{name}/cv.json")["leaky"] is leaky
            assert bool(re.search(rf" {name} \(leaky\) ", found.out)) is leaky
        assert read("ensembles/mixed/ensemble.json")["leaky"]
        assert "mixed (leaky) (mean)" in found.out
        rows = {row["name"]: row["leaky"] for row in read("pipelines/rounds.json")["rounds"]}
        assert rows == {**marks, "mixed": True}
        assert read("submissions/student.json")["leaky"]
        assert "warning: student (leaky)" in found.err

        assert (
            main(
                [
                    "train",
                    "configs/tiny.yaml",
                    *QUICK,
                    "--run",
                    "b",
                    "teacher.runs=[mixed]",
                    "teacher.distill.weight=0.5",
                ]
            )
            == 0
        )
        assert "b (leaky): macro_f1" in capsys.readouterr().out
        assert main(["ensemble", "a", "student", "--name", "again", "--method", "mean"]) == 0
        out = capsys.readouterr().out
        assert "student (leaky)" in out
        assert "again (leaky) (mean)" in out
        assert main(["submit", "a"]) == 0
        assert main(["submit", "again"]) == 0
        err = capsys.readouterr().err
        assert err.count("(leaky)") == 1
        assert not read("submissions/a.json")["leaky"]
        assert read("submissions/again.json")["leaky"]


class TestOptimism:
    def test_weights_that_validation_chose_are_marked_in_every_blend(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_competition(project, rows=24, test_rows=6)
        path = write(
            train("a"),
            train("b", **OTHER),
            train("c", **{"train.keep": "best"}),
            ensemble("plain", "a", "b"),
            ensemble("mixed", "a", "c"),
        )
        assert main(["run", path, *QUICK]) == 0
        out = capsys.readouterr().out
        marks = {"a": False, "b": False, "c": True, "plain": False, "mixed": True}
        found = {name: read(f"runs/{name}/cv.json")["optimistic"] for name in "abc"}
        assert found == {name: marks[name] for name in "abc"}
        for name in ("plain", "mixed"):
            record = read(f"ensembles/{name}/ensemble.json")
            assert record["optimistic"] is marks[name]
            assert {member["name"]: member["optimistic"] for member in record["members"]} == {
                member: marks[member] for member in (("a", "b") if name == "plain" else ("a", "c"))
            }
        assert {row["name"]: row["optimistic"] for row in read("pipelines/rounds.json")["rounds"]} == marks
        note = "c, mixed: validation labels chose the weights, so these scores are a little too good"
        assert note in out.splitlines()
        assert f"- {note}" in Path("pipelines/rounds.md").read_text().splitlines()


class TestValidations:
    def test_seeds_and_repeats_are_averaged_and_their_spread_is_told(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(make_competition(project, rows=24, test_rows=6, folds={"repeats": 2}))
        assert main(["train", config, *QUICK, "train.seeds=[7, 8]"]) == 0
        out = capsys.readouterr().out
        cv = read("runs/tiny/cv.json")
        labels = pd.read_csv("data/tiny/train.csv", dtype=str).set_index("id")["label"]
        metric, main_name = get_metric("macro_f1"), "macro_f1"

        def table(folds: list[int], seeds: list[str]) -> pd.DataFrame:
            parts = [
                pd.concat([pd.read_parquet(f"runs/tiny/fold{fold}{seed}/oof.parquet") for fold in pair]).set_index("id")
                for pair in (folds[i : i + 2] for i in range(0, len(folds), 2))
                for seed in seeds
            ]
            return sum(part.filter(like="p_").loc[labels.index] for part in parts) / len(parts)

        def of(frame: pd.DataFrame) -> float:
            truth = (labels.loc[frame.index].to_numpy()[:, None] == np.array(CLASSES)).astype(np.float32)
            return score(metric, Task("multiclass", CLASSES), truth, frame.filter(like="p_").to_numpy(dtype=np.float32))

        seeds = {0: "", 7: "-seed7", 8: "-seed8"}
        assert [entry["seed"] for entry in cv["by_seed"]] == [0, 7, 8]
        for entry in cv["by_seed"]:
            assert entry["oof"][main_name] == pytest.approx(of(table([0, 1, 2, 3], [seeds[entry["seed"]]])))
        assert [entry["repeat"] for entry in cv["by_repeat"]] == [0, 1]
        for entry in cv["by_repeat"]:
            first = 2 * entry["repeat"]
            assert entry["oof"][main_name] == pytest.approx(of(table([first, first + 1], list(seeds.values()))))
            assert entry["mean"] == pytest.approx(fmean(fold[main_name] for fold in cv["folds"][first : first + 2]))
        assert cv["oof"][main_name] == pytest.approx(of(table([0, 1, 2, 3], list(seeds.values()))))
        for key, entries in (("seeds", cv["by_seed"]), ("repeats", cv["by_repeat"])):
            spread = stdev(entry["oof"][main_name] for entry in entries)
            assert cv["spread"][key] == pytest.approx(spread)
            assert re.search(rf"of {len(entries)} {key}: .*standard deviation {spread:.4f}", out)

        # An ensemble of repeats has the first repeat's folds, and its member is scored on them by its averaged predictions.
        path = write({**TRAIN, "set": {"train.seeds": [7, 8]}}, train("b", **OTHER), ensemble("e", "tiny", "b"))
        assert main(["run", path, *QUICK]) == 0
        assert f"tiny: OOF over 3 seeds: standard deviation {cv['spread']['seeds']:.4f}" in capsys.readouterr().out
        difference = read("pipelines/rounds.json")["rounds"][2]["difference"]
        assert difference["folds"] == 2
        member = pd.read_parquet(f"runs/{difference['against']}/oof.parquet").set_index("id")
        record = read("ensembles/e/ensemble.json")["cross_fitted"]["folds"]
        gains = [entry["score"] - of(member[member["fold"] == entry["fold"]]) for entry in record]
        assert difference["mean"] == pytest.approx(fmean(gains))

    def test_one_validation_has_no_spread(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(make_competition(project, rows=24, test_rows=6))
        assert main(["train", config, *QUICK]) == 0
        cv = read("runs/tiny/cv.json")
        assert cv["spread"] == {"seeds": None, "repeats": None}
        assert cv["by_seed"][0]["oof"] == cv["by_repeat"][0]["oof"] == cv["oof"]
        assert cv["pseudo"] is None
        assert "standard deviation" not in capsys.readouterr().out


def assigned(fold: int) -> pd.Series:
    """The class of each pseudo-label that the run 'p' took in a fold, by id."""
    frame = pd.read_parquet(f"runs/p/fold{fold}/labels.parquet").set_index("id").filter(like="p_")
    return frame.idxmax(axis=1).str.removeprefix("p_")


class TestLabels:
    def test_their_number_is_recorded_and_score_says_how_right_they_were(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_competition(project, rows=24, test_rows=12)
        rounds = [
            train("a"),
            pseudo("p", "a"),
            ensemble("e", "a", "p"),
            distill("d", "e"),
            {"kind": "submit", "source": "d"},
        ]
        assert main(["run", write(*rounds), *QUICK]) == 0
        out = capsys.readouterr().out
        given = [assigned(fold) for fold in (0, 1)]
        pseudo_record = read("runs/p/cv.json")["pseudo"]
        assert pseudo_record["candidates"] == 12
        assert pseudo_record["taken"] == fmean(len(found) for found in given)
        for name, count in pseudo_record["classes"].items():
            assert count == fmean((found == name).sum() for found in given)
        assert f"p: {pseudo_record['taken']:.0f} of 12 images pseudo-labelled a fold" in out

        # The submission is the student's, whose teacher is an ensemble with 'p' as a member.
        command = ["score", "submissions/d.csv", "data/tiny/solution.csv", "configs/tiny.yaml"]
        assert main(command) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("p: "))
        truth = pd.read_csv("data/tiny/solution.csv", dtype=str).set_index("id")["label"]
        rights = [found == truth.loc[found.index] for found in given]
        assert f"{fmean(right.mean() for right in rights):.4f} right" in line
        for name in CLASSES:
            shares = [
                right[found == name].mean() for right, found in zip(rights, given, strict=True) if (found == name).any()
            ]
            if shares:
                assert f"{name} {fmean(shares):.4f} of" in line

        # A record of another CSV vouches for nothing.
        Path("submissions/d.csv").write_text(Path("submissions/d.csv").read_text() + "\n")
        assert main(command) == 0
        assert "pseudo-labels" not in capsys.readouterr().out

    @pytest.mark.parametrize("task", ["regression", "multilabel", "binary", "ordinal"])
    def test_every_task(self, task: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_competition(project, task, rows=24, test_rows=6)
        assert main(["run", write(train("a"), pseudo("p", "a"), {"kind": "submit", "source": "p"}), *QUICK]) == 0
        capsys.readouterr()
        assert main(["score", "submissions/p.csv", "data/tiny/solution.csv", "configs/tiny.yaml"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("p: "))
        assert "p: 6 pseudo-labels a fold with a known label" in line
        if task == "regression":
            truth = pd.read_csv("data/tiny/solution.csv", dtype={"id": str}).set_index("id")["label"]
            tables = [pd.read_parquet(f"runs/p/fold{fold}/labels.parquet").set_index("id") for fold in (0, 1)]
            error = fmean((frame["p_label"] - truth.loc[frame.index]).abs().mean() for frame in tables)
            assert f"mean absolute error {error:.4f}" in line
        else:
            assert re.search(r": [01]\.\d{4} right", line)
