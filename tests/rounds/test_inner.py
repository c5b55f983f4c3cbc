"""Cross-fitted teachers: no training row is labelled by a network that has seen it, or the validated fold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from goldfold import files
from goldfold.cli import main
from goldfold.config.schema import Folds
from goldfold.errors import BadInput
from goldfold.machine import Machine
from goldfold.pipeline import inner
from goldfold.records import Predictions
from goldfold.rounds import gather_inner, inner_parts
from goldfold.tasks import Task
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob
from goldfold.training import train_fold as real_train_fold
from tests.rounds.conftest import CONFIG, SHORT, write_ensemble

Heard = dict[str, FoldJob]
CROSSED = ["teacher.distill.weight=0.5", "teacher.distill.how=cross_fitted"]
FIRST = ["--fold", "0"]
MULTI = Task("multiclass", ("a", "b"))


def student(*settings: str, runs: str = "tiny") -> list[str]:
    return ["train", CONFIG, *SHORT, "--run", "student", f"teacher.runs=[{runs}]", *CROSSED, *settings]


def known_value(job: FoldJob) -> float:
    """A probability that tells which inner network it is of: the member, and its part."""
    member = 0.1 if "tiny" in job.run else 0.5
    return member + 0.05 * job.fold


@pytest.fixture
def inner_jobs(monkeypatch: pytest.MonkeyPatch) -> list[FoldJob]:
    """The inner trainings; each "network" says its ``known_value`` of the first class."""
    jobs: list[FoldJob] = []

    def fake(job: FoldJob, machine: Machine, tracker: WandbRun) -> None:
        jobs.append(job)
        values = np.full((len(job.valid_ids), 3), (1 - known_value(job)) / 2, dtype=np.float32)
        values[:, 0] = known_value(job)
        Predictions(job.valid_ids, values, job.task.classes, job.run).write(job.paths.oof, job.id_column)
        files.write_json(job.paths.done, {"fingerprint": job.fingerprint})

    monkeypatch.setattr(inner, "train_fold", fake)
    return jobs


def test_each_row_is_labelled_by_networks_that_saw_neither_it_nor_the_fold(
    teachers: Path, heard: Heard, inner_jobs: list[FoldJob]
) -> None:
    write_ensemble(teachers, "both", ["tiny", "grey"], {None: (0.5, 0.5), 0: (0.25, 0.75), 1: (1.0, 0.0)})
    assert main(student(runs="both")) == 0
    assert len(inner_jobs) == 3 * 2 + 3 * 1  # in fold 1 one member counts for nothing
    for fold in (0, 1):
        job = heard[f"fold{fold}"]
        mine = [found for found in inner_jobs if f"student/fold{fold}/inner" in str(found.paths.folder)]
        own = set(job.examples.ids)
        for found in mine:
            learned, labelled = set(found.examples.ids), set(found.valid_ids)
            assert learned | labelled == own
            assert not learned & labelled
            assert not (learned | labelled) & set(job.valid_ids)
            assert found.test is None
            assert not found.recipe.teacher.runs
        for member in {"tiny", "grey"} if fold == 0 else {"tiny"}:
            parts = [found for found in mine if f"inner {member}" in found.run]
            assert sorted(name for found in parts for name in found.valid_ids) == sorted(own)
            assert {found.examples.images.shape for found in parts} == {
                (24, 24, 3) if member == "tiny" else (32, 32, 1)
            }
        # What each row is given is what its own part's networks said.
        said = {}
        for found in mine:
            share = 1.0 if fold else (0.25 if "tiny" in found.run else 0.75)
            for name in found.valid_ids:
                said[name] = said.get(name, 0.0) + share * known_value(found)
        assert job.examples.teacher[:, 0, 0].tolist() == pytest.approx([said[name] for name in job.examples.ids])
        assert len(set(said.values())) == 3


def test_groups_stay_whole_in_inner_parts(
    tmp_path: Path, teachers: Path, heard: Heard, inner_jobs: list[FoldJob]
) -> None:
    settings = yaml.safe_load(Path(CONFIG).read_text())
    settings["competition"]["group"] = "site"
    settings["folds"]["scheme"] = "stratified_group"
    Path(CONFIG).write_text(yaml.safe_dump(settings))
    for folder in ("runs", "folds"):
        shutil.rmtree(folder)
    assert main(["train", CONFIG, *SHORT]) == 0
    assert main(student("teacher.distill.inner=2")) == 0
    sites = pd.read_csv("data/tiny/train.csv", dtype=str).set_index("id")["site"]
    assert len(inner_jobs) == 4
    for found in inner_jobs:
        assert not set(sites.loc[list(found.examples.ids)]) & set(sites.loc[list(found.valid_ids)])


def test_external_images_bring_no_hidden_picture_in(teachers: Path, heard: Heard, inner_jobs: list[FoldJob]) -> None:
    """A copy of a validated image in another data set is hidden from fold k's inner networks, as from its own."""
    folder = Path("data/tiny/other")
    folder.mkdir()
    names = sorted(pd.read_csv("data/tiny/train.csv", dtype=str)["id"])[:12]
    for name in names:
        shutil.copy(f"data/tiny/images/{name}.png", folder / f"copy{name}.png")
    frame = pd.DataFrame({"id": [f"copy{name}" for name in names], "label": "cat"})
    frame.to_csv("data/tiny/other.csv", index=False)
    entry = "competition.external=[{csv: data/tiny/other.csv, image_path: 'data/tiny/other/{id}.png'}]"
    shutil.rmtree("runs/tiny")
    assert main(["train", CONFIG, *SHORT, entry]) == 0
    assert main([*student(entry), *FIRST]) == 0
    hidden = {f"copy{name}" for name in names if name in heard["fold0"].valid_ids}
    assert hidden
    for found in inner_jobs:
        brought = {name for name in found.examples.ids if name.startswith("copy")}
        assert not brought & hidden
        assert not brought & {f"copy{name}" for name in found.valid_ids}
        assert brought
    # No network labels an external image without having seen it, so those have their labels alone.
    given = dict(zip(heard["fold0"].examples.ids, heard["fold0"].examples.teacher_weights, strict=True))
    assert {given[name] for name in given if name.startswith("copy")} == {0.0}
    assert {given[name] for name in given if not name.startswith("copy")} == {1.0}


def test_inner_networks_leave_their_predictions_and_go_on_where_they_stopped(
    teachers: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def stopping(stop: int) -> Callable[..., object]:
        def train(job: FoldJob, machine: Machine, tracker: WandbRun) -> object:
            calls.append(job.paths.folder.name)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real_train_fold(job, machine, tracker)

        return train

    monkeypatch.setattr(inner, "train_fold", stopping(2))
    assert main([*student("train.seeds=[4]"), *FIRST]) != 0
    assert tree() == {"tiny-0/oof.parquet", "tiny-0/DONE", "tiny-1/started.json"}
    first = Path("runs/student/fold0/inner/tiny-0/oof.parquet").stat().st_mtime_ns
    monkeypatch.setattr(inner, "train_fold", stopping(0))
    assert main([*student("train.seeds=[4]"), *FIRST]) == 0
    # The student's second seed uses the first one's inner networks.
    assert calls == ["tiny-0", "tiny-1", "tiny-1", "tiny-2"]
    assert tree() == {f"tiny-{part}/{name}" for part in range(3) for name in ("oof.parquet", "DONE")}
    assert Path("runs/student/fold0/inner/tiny-0/oof.parquet").stat().st_mtime_ns == first
    assert np.array_equal(heard["fold0"].examples.teacher, heard["fold0-seed4"].examples.teacher)
    given = heard["fold0"].examples.teacher[:, 0].copy()
    # From nothing in one go they say the same.
    shutil.rmtree("runs/student")
    assert main([*student("train.seeds=[4]"), *FIRST]) == 0
    assert np.array_equal(heard["fold0"].examples.teacher[:, 0], given)


def tree() -> set[str]:
    folder = Path("runs/student/fold0/inner")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_other_parts_are_other_networks(teachers: Path, heard: Heard, inner_jobs: list[FoldJob]) -> None:
    assert main([*student(), *FIRST]) == 0
    assert len(inner_jobs) == 3
    assert main([*student(), *FIRST]) == 0
    assert len(inner_jobs) == 3
    assert main([*student("teacher.distill.inner=2"), *FIRST]) == 0
    assert [found.paths.folder.name for found in inner_jobs[3:]] == ["tiny-0", "tiny-1"]
    assert {len(found.valid_ids) for found in inner_jobs[3:]} == {12}


def test_what_another_inner_training_left_is_cleared(
    teachers: Path, heard: Heard, inner_jobs: list[FoldJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume state of other parts, say: a network that goes on from it would have seen its own rows."""
    folder = Path("runs/student/fold0/inner/tiny-0")
    (folder / "last").mkdir(parents=True)
    (folder / "last/state.safetensors").write_bytes(b"of other parts")
    (folder / "started.json").write_text('{"fingerprint": "another"}')
    real, states = inner.train_fold, []

    def looking(job: FoldJob, machine: Machine, tracker: WandbRun) -> object:
        states.append((job.paths.last / "state.safetensors").exists())
        return real(job, machine, tracker)

    monkeypatch.setattr(inner, "train_fold", looking)
    assert main([*student(), *FIRST]) == 0
    assert states == [False] * 3


def test_a_teacher_that_was_taught_is_refused(teachers: Path, heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("runs/tiny/config.yaml").read_text()
    values = yaml.safe_load(text)
    values["teacher"] |= {"runs": ["grey"], "distill": {**values["teacher"]["distill"], "weight": 0.5}}
    Path("runs/tiny/config.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert main([*student(), *FIRST]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "teacher.distill.how: the teacher 'tiny' was itself taught (by grey), which inner folds cannot repeat" in last
    )


def test_several_processes_are_refused_in_one_line(
    teachers: Path,
    heard: Heard,
    inner_jobs: list[FoldJob],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each of them would train the inner networks, into the same folders."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*student(), *FIRST]) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("goldfold: "))
    assert line == (
        "goldfold: teacher.distill.how: inner folds of cross_fitted are trained by one process; "
        "start this run without a launcher"
    )
    assert not inner_jobs
    assert not heard
    assert not Path("runs/student/fold0/inner").exists()
    # Stored probabilities need no training, and one process may train inner folds.
    assert main([*student("teacher.distill.how=stored", "--run", "stored"), *FIRST]) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main([*student(), *FIRST]) == 0
    assert len(inner_jobs) == 3


# --- the deal ---------------------------------------------------------------------------------------------------------


def deal(
    settings: Folds, frame: pd.DataFrame, task: Task = MULTI, group: str | None = None, fold: int = 0, inner: int = 3
):  # type: ignore[no-untyped-def]
    targets = np.eye(2, dtype=np.float32)[(frame["label"] == "b").astype(int)]
    return inner_parts(
        settings,
        frame,
        targets,
        task,
        fold=fold,
        inner=inner,
        id_column="id",
        target_columns=["label"],
        group=group,
    )


FRAME = pd.DataFrame(
    {
        "id": [f"i{row}" for row in range(24)],
        "label": ["a", "b", "a"] * 8,
        "site": [f"s{row % 6}" for row in range(24)],
        "flag": ["1", "0"] * 12,
    }
)


def test_parts_are_stratified_and_dealt_anew_for_each_fold() -> None:
    table = deal(Folds(), FRAME)
    labels = dict(zip(FRAME["id"], FRAME["label"], strict=True))
    for part in range(3):
        counts = pd.Series([labels[name] for name in table.valid_ids(part)]).value_counts()
        assert counts["a"] in (5, 6)
        assert counts["b"] in (2, 3)
    assert np.array_equal(table.fold, deal(Folds(), FRAME).fold)
    assert not np.array_equal(table.fold, deal(Folds(), FRAME, fold=1).fold)
    shuffled = deal(Folds(), FRAME.sample(frac=1, random_state=0))
    assert {name: table.fold[row] for row, name in enumerate(table.ids)} == {
        name: shuffled.fold[row] for row, name in enumerate(shuffled.ids)
    }


@pytest.mark.parametrize("scheme", ["holdout", "column"])
@pytest.mark.parametrize("group", [None, "site"])
def test_folds_that_a_column_gives_are_stratified_inside(scheme: str, group: str | None) -> None:
    table = deal(Folds(scheme=scheme, column="flag"), FRAME, group=group)  # type: ignore[arg-type]
    assert sorted(set(table.fold.tolist())) == [0, 1, 2]
    if group:
        assert table.groups is not None
        assert len({(site, fold) for site, fold in zip(table.groups, table.fold, strict=True)}) == 6


def test_too_few_rows_of_a_class_are_told() -> None:
    with pytest.raises(
        BadInput, match=r"teacher\.distill\.inner: the training rows of fold 2 cannot be dealt to 12 parts"
    ):
        deal(Folds(), FRAME, fold=2, inner=12)


def test_a_row_that_no_part_labelled_is_missed(tmp_path: Path) -> None:
    from goldfold.paths import FoldPaths

    folders = [FoldPaths(tmp_path / name) for name in ("x-0", "x-1")]
    for folder, ids in zip(folders, (("p", "q"), ("r",)), strict=True):
        values = np.full((len(ids), 2), len(ids), dtype=np.float32)
        Predictions(ids, values, ("a", "b"), "x").write(folder.oof, "id")
    assert gather_inner(folders, ["r", "p"], "x")[:, 0].tolist() == [1, 2]
    with pytest.raises(BadInput, match="1 ids are missing: s"):
        gather_inner(folders, ["r", "s"], "x")
