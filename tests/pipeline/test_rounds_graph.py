"""A pipeline's graph is checked before anything runs: every problem is named, and nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from goldfold.cli import main
from goldfold.config.schema import PseudoLabelRound
from goldfold.pipeline.graph import plan_rounds
from tests.pipeline.competitions import make_competition

TRAIN: dict[str, object] = {"kind": "train", "experiment": "tiny.yaml"}
QUICK = ["train.epochs=1"]


def train(name: str, **changes: object) -> dict[str, object]:
    return {**TRAIN, "name": name, "set": changes}


def pseudo(name: str, *teachers: str, **keys: object) -> dict[str, object]:
    return {**TRAIN, "kind": "pseudo_label", "name": name, "teachers": list(teachers), **keys}


def distill(name: str, *teachers: str, **keys: object) -> dict[str, object]:
    return {**TRAIN, "kind": "distill", "name": name, "teachers": list(teachers), **keys}


def ensemble(name: str, *members: str) -> dict[str, object]:
    return {"kind": "ensemble", "name": name, "members": list(members), "method": "mean"}


def write(*rounds: dict[str, object]) -> str:
    path = Path("configs/rounds.yaml")
    path.write_text(yaml.safe_dump({"name": "rounds", "rounds": list(rounds)}))
    return str(path)


def problems(*rounds: dict[str, object]) -> list[str]:
    return list(plan_rounds(Path(write(*rounds))).problems)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run 'tiny' and an ensemble 'pair' of it and 'other'."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_competition(root, rows=24, test_rows=6)
        assert (
            main(
                [
                    "run",
                    write(train("tiny"), train("other", **{"train.seed": 5}), ensemble("pair", "tiny", "other")),
                    *QUICK,
                ]
            )
            == 0
        )
    return root


GOOD = [
    [train("a"), pseudo("b", "a"), ensemble("c", "a", "b"), distill("d", "c", "a")],
    [train("a"), train("b"), ensemble("c", "a", "b"), pseudo("d", "c", images="test", min_prob={"cat": 0.5}, top_k=3)],
    [train("a"), pseudo("b", "a", top_k=None, margin=None, labels="hard"), {"kind": "submit", "source": "b"}],
]


@pytest.mark.parametrize("rounds", GOOD)
def test_rounds_that_fit(project: Path, rounds: list[dict[str, object]]) -> None:
    make_competition(project)
    assert problems(*rounds) == []


OFF = {"teacher.runs": [], "teacher.pseudo.labels": "none", "teacher.pseudo.top_k": None, "teacher.pseudo.min_prob": 0}
"""What makes an experiment with teachers one without."""


def test_keys_of_a_round_reach_its_experiment(project: Path) -> None:
    """Null, numbers, lists and sections; what the round leaves out stays as the experiment's file has it."""
    make_competition(project, teacher={"runs": ["x"], "pseudo": {"labels": "hard", "top_k": 7, "min_prob": 0.5}})
    keys = {"min_prob": {"cat": 0.9, "dog": 0.8}, "margin": 0.25, "sampling_prob": None, "weighting": "confidence"}
    many = {"train.seeds": [1]}
    path = write(
        train("a", **OFF, **many), pseudo("b", "a", leaky=True, **keys), pseudo("c", "a", labels="soft", top_k=None)
    )
    plan = plan_rounds(Path(path))
    assert plan.problems == ()
    teacher = plan.configs["b"].teacher
    assert teacher.runs == ("a",)
    assert teacher.leaky
    assert teacher.pseudo.labels == "hard"
    assert teacher.pseudo.min_prob == {"cat": 0.9, "dog": 0.8}
    assert (teacher.pseudo.top_k, teacher.pseudo.margin, teacher.pseudo.weighting) == (7, 0.25, "confidence")
    assert plan.configs["a"].teacher.runs == ()
    other = plan.configs["c"].teacher
    assert (other.pseudo.labels, other.pseudo.top_k, other.pseudo.min_prob, other.leaky) == ("soft", None, 0.5, False)


def test_an_experiment_and_set_keep_what_the_round_leaves_out(project: Path) -> None:
    """A recipe with its noise is written once; a round names the teachers."""
    make_competition(project, teacher={"runs": ["x"], "pseudo": {"labels": "hard", "top_k": 5, "min_prob": 0.4, "cool_down": 1}})  # fmt: skip
    set_ = {"teacher.pseudo.min_prob": 0.9, "teacher": {"pseudo": {"weight": 0.5}}}
    plan = plan_rounds(Path(write(train("a", **OFF, **{"teacher.pseudo.cool_down": 0}), pseudo("b", "a"), pseudo("c", "b", set=set_))))  # fmt: skip
    assert plan.problems == ()
    found = {name: plan.configs[name].teacher.pseudo for name in "bc"}
    for name, min_prob, weight in (("b", 0.4, 1.0), ("c", 0.9, 0.5)):
        pseudo_ = found[name]
        assert (pseudo_.labels, pseudo_.top_k, pseudo_.cool_down) == ("hard", 5, 1)
        assert (pseudo_.min_prob, pseudo_.weight) == (min_prob, weight)
    # Whoever reads the plan finds the same keys in the round.
    step = plan.rounds[2].step
    assert isinstance(step, PseudoLabelRound)
    assert (step.labels, step.top_k, step.min_prob, step.cool_down) == ("hard", 5, 0.9, 1)
    assert plan.rounds[2].needs == ("b",)


def test_set_of_a_distillation_is_kept(project: Path) -> None:
    make_competition(project)
    set_ = {"teacher.distill.temperature": 4, "teacher.leaky": True}
    plan = plan_rounds(Path(write(train("a"), distill("b", "a", set=set_), distill("c", "a", set={"teacher.distill.weight": 0.2}))))  # fmt: skip
    assert plan.problems == ()
    first, second = plan.configs["b"].teacher, plan.configs["c"].teacher
    assert (first.distill.temperature, first.distill.weight, first.leaky) == (4, 0.5, True)
    assert (second.distill.temperature, second.distill.weight, second.leaky) == (1, 0.2, False)


@pytest.mark.parametrize(
    ("keys", "set_", "fragment"),
    [
        ({"min_prob": 0.5}, {"teacher.pseudo.min_prob": 0.9}, "'teacher.pseudo.min_prob' is given by the round's own 'min_prob'"),
        ({"min_prob": 0.5}, {"teacher": {"pseudo": {"min_prob": {"cat": 0.9}}}}, "'teacher.pseudo.min_prob.cat'"),
        ({}, {"teacher.runs": ["a"]}, "'teacher.runs' is given by the round's own 'teachers'"),
        ({"leaky": False}, {"teacher.leaky": True}, "the round's own 'leaky'"),
    ],
)  # fmt: skip
def test_a_key_of_the_round_and_of_its_set_is_refused(
    keys: dict[str, object], set_: dict[str, object], fragment: str, project: Path
) -> None:
    make_competition(project)
    (line,) = problems(train("a"), pseudo("b", "a", set=set_, **keys))
    assert "rounds.1: set: " in line
    assert fragment in line


def test_a_doubled_teacher_is_refused_in_an_experiment(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(make_competition(project))
    assert main(["train", config, "teacher.runs=[tiny, tiny]", "teacher.pseudo.labels=soft"]) == 2
    assert "teacher.runs names 'tiny' twice" in capsys.readouterr().err


def test_keys_of_a_distillation_reach_its_experiment(project: Path) -> None:
    make_competition(project)
    plan = plan_rounds(
        Path(write(train("a"), distill("b", "a", weight=0.7, how="online", temperature=3, features=0.1)))
    )
    assert plan.problems == ()
    found = plan.configs["b"].teacher.distill
    assert (found.weight, found.how, found.temperature, found.features) == (0.7, "online", 3, 0.1)


BAD = {
    "an unknown teacher": ([train("alpha"), pseudo("b", "alpa")], ["rounds.1", "'alpa'", "did you mean 'alpha'?"]),
    "an unknown member": ([train("a"), ensemble("c", "a", "zz")], ["rounds.1", "'zz'", "earlier rounds make a"]),
    "an unknown source": (
        [train("a"), {"kind": "submit", "source": "zz"}],
        ["rounds.1", "no earlier round makes 'zz'"],
    ),
    "a later round": (
        [train("a"), pseudo("b", "c"), train("c")],
        ["rounds.1", "'c' is made by a later round (rounds.2)", "move that round up"],
    ),
    "a round that is its own teacher": ([train("a"), pseudo("b", "b")], ["rounds.1", "need each other: b -> b"]),
    "two rounds that teach each other": (
        [train("a"), pseudo("b", "c"), distill("c", "b")],
        ["rounds.1", "need each other: b -> c -> b"],
    ),
    "a cycle through an ensemble": (
        [train("a"), pseudo("b", "both"), distill("c", "b"), ensemble("both", "a", "c")],
        ["rounds.1", "need each other: b -> c -> both -> b"],
    ),
    "a doubled run": ([train("a"), train("a")], ["rounds.1", "the name 'a' is taken", "give this round a name"]),
    "an ensemble with a run's name": ([train("a"), ensemble("a", "a")], ["rounds.1", "the name 'a' is taken"]),
    "a doubled submission": (
        [train("a"), {"kind": "submit", "source": "a"}, {"kind": "submit", "source": "a"}],
        ["rounds.2", "the submission 'a' is written by an earlier round"],
    ),
    "a doubled teacher": ([train("a"), pseudo("b", "a", "a")], ["rounds.1", "'a' is named twice"]),
    "an ensemble as a member": (
        [train("a"), ensemble("c", "a"), ensemble("d", "a", "c")],
        ["rounds.2", "the member 'c' is an ensemble", "name its members"],
    ),
    "other folds": (
        [train("a"), train("b", **{"folds.seed": 3}), ensemble("c", "a", "b")],
        ["rounds.1", "the folds section of 'b' differs from that of 'a' in folds.seed"],
    ),
    "another task": (
        [train("a"), pseudo("b", "a", set={"competition.task": "ordinal", "competition.metric": "qwk"})],
        ["rounds.1", "the competition section of 'b' differs", "competition.task"],
    ),
    "other classes": (
        [train("a"), distill("b", "a", set={"competition.classes": ["fox", "dog", "cat"]})],
        ["rounds.1", "competition.classes"],
    ),
    "nothing to label": (
        [train("a", **{"competition.test_csv": None}), pseudo("b", "a", set={"competition.test_csv": None})],
        ["rounds.1", "no images to label", "test_csv", "unlabelled"],
    ),
    "no unlabelled images": (
        [train("a"), pseudo("b", "a", images="unlabelled")],
        ["rounds.1", "no images to label", "competition.unlabelled"],
    ),
    "an experiment that does not load": ([train("a", **{"optim.nam": "sgd"})], ["rounds.0", "optim.nam", "optim.name"]),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_problem_is_one_line_and_nothing_is_trained(
    case: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_competition(project)
    rounds, fragments = BAD[case]
    (line,) = problems(*rounds)
    for fragment in fragments:
        assert fragment in line
    path = write(*rounds)
    assert main(["run", path]) == 2
    assert capsys.readouterr().err == f"goldfold: {line}\n"
    assert not (project / "runs").exists()
    assert not (project / "folds").exists()


def test_check_lists_every_problem(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_competition(project)
    path = write(train("a"), train("a"), pseudo("b", "zz"), pseudo("c", "d"), distill("d", "c"))
    assert main(["check", path, "--no-decode"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: ")]
    assert len(lines) == 3, lines
    assert all("rounds.yaml: rounds." in line for line in lines)
    assert main(["run", path]) == 2
    assert "2 more problems: goldfold check lists all" in capsys.readouterr().err


def test_a_round_that_does_not_load_brings_no_echo(project: Path) -> None:
    """Its run would be called 'tiny', and others may name it so."""
    make_competition(project)
    assert len(problems({**TRAIN, "set": {"optim.nam": "x"}}, pseudo("b", "tiny"), ensemble("c", "tiny", "b"))) == 1


def test_finished_runs_and_ensembles_may_teach(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    assert problems(pseudo("b", "pair"), distill("c", "tiny"), ensemble("d", "tiny", "b", "c")) == []


@pytest.mark.parametrize(
    ("rounds", "fragments"),
    [
        ([pseudo("b", "pair", set={"folds.n": 3})], ["the folds section of 'tiny' in 'pair'", "folds.n"]),
        ([distill("b", "tiny", set={"competition.metric": "accuracy"})], ["'tiny'", "competition.metric"]),
        ([train("a"), ensemble("c", "a", "pair")], ["the member 'pair' is an ensemble"]),
        ([train("a"), ensemble("tiny", "a")], ["'tiny' is the name of a run too"]),
        ([train("pair")], ["'pair' is the name of an ensemble too"]),
        ([pseudo("b", "pear")], ["'pear'", "did you mean 'pair'?"]),
    ],
)
def test_finished_runs_and_ensembles_that_do_not_fit(
    rounds: list[dict[str, object]], fragments: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    found = problems(*rounds)
    for fragment in fragments:
        assert fragment in found[0]


def test_a_run_of_other_folds_does_not_teach(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    table = Path("folds/tiny.csv")
    before = table.read_bytes()
    table.write_bytes(before.replace(b",0", b",9").replace(b",1", b",0").replace(b",9", b",1"))
    try:
        (line,) = problems(pseudo("b", "tiny"))
    finally:
        table.write_bytes(before)
    assert "the run 'tiny' was trained on other folds" in line


@pytest.fixture
def stale(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the member 'other' had been trained anew since 'pair' was made of it."""
    monkeypatch.chdir(finished)
    table = Path("runs/other/oof.parquet")
    before = table.read_bytes()
    table.write_bytes(Path("runs/tiny/oof.parquet").read_bytes())
    yield
    table.write_bytes(before)


@pytest.mark.usefixtures("stale")
def test_an_ensemble_whose_members_were_trained_anew_is_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", write(pseudo("late", "pair")), *QUICK]) == 2
    assert "made of other predictions of 'other'" in capsys.readouterr().err
    assert not Path("runs/late").exists()


@pytest.mark.usefixtures("stale")
def test_a_stale_ensemble_is_not_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "pair", "--out", "stale.csv"]) == 2
    assert "made of other predictions of 'other'" in capsys.readouterr().err
    assert not Path("stale.csv").exists()


def test_a_fresh_ensemble_is_submitted(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    assert main(["submit", "pair", "--out", "fresh.csv"]) == 0


PEEKING: list[dict[str, object]] = [
    {"train.keep": "best"},
    {"train.early_stopping.patience": 2},
    {"train.soup.epochs": 2, "train.soup.method": "greedy"},
    {"schedule.name": "plateau"},
]


@pytest.mark.parametrize("settings", PEEKING, ids=str)
def test_a_teacher_whose_weights_the_validated_labels_chose_is_refused(
    settings: dict[str, object], project: Path
) -> None:
    make_competition(project)
    teacher = train("a", **{"train.epochs": 4, **settings})
    for student in (pseudo("b", "a"), distill("b", "a")):
        (line,) = problems(teacher, student)
        assert "the labels of each validated fold chose weights of 'a'" in line
    (line,) = problems(teacher, train("c"), ensemble("both", "a", "c"), pseudo("b", "both"))
    assert "chose weights of 'a'" in line
    assert problems(teacher, train("c"), ensemble("both", "a", "c")) == []
    assert problems(teacher, pseudo("b", "a", leaky=True)) == []


def test_it_is_refused_from_disk_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(make_competition(project, rows=24, test_rows=6))
    assert main(["train", config, "--run", "a", "train.keep=best", *QUICK]) == 0
    student = [config, "--run", "b", "teacher.runs=[a]", "teacher.pseudo.labels=soft", *QUICK]
    assert main(["train", *student]) == 2
    assert "the labels of each validated fold chose weights of 'a'" in capsys.readouterr().err
    assert main(["check", *student[:1], "name=b", *student[3:]]) == 2
    assert main(["train", *student, "teacher.leaky=true"]) == 0
