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


def ensemble(name: str, *members: str, **keys: object) -> dict[str, object]:
    return {"kind": "ensemble", "name": name, "members": list(members), "method": "mean", **keys}


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
    # Several networks may disagree: of seeds, of runs, of folds.
    [train("a", **{"train.seeds": [1]}), train("b"), pseudo("c", "a", margin=0.2), pseudo("d", "b", "c", margin=0.2)],
    [
        train("a"),
        train("b"),
        ensemble("e", "a", "b"),
        pseudo("c", "e", margin=0.2),
        pseudo("d", "a", margin=1, leaky=True),
    ],
    # What does not suit online distillation suits stored answers, and a cached trunk has stored images of its own.
    [
        train("a", **{"input.colour": "lab"}),
        train("b"),
        ensemble("e", "a", "b", method="stacking", calibration="temperature"),
        distill("c", "e"),
        pseudo("d", "c"),
        distill("f", "d", how="online"),
        distill("g", "a", how="online", set={"model.freeze.stages": 2, "model.freeze.cache": True}),
    ],
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


def test_views_alone_in_set(project: Path) -> None:
    make_competition(project)
    assert plan_rounds(Path(write(train("a", tta="d4")))).configs["a"].tta.views == "d4"


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
    "a mean of ranks that teaches": (
        [train("a"), train("b"), ensemble("e", "a", "b", method="rank_mean"), pseudo("c", "e")],
        ["rounds.3", "the ensemble 'e' is a mean of ranks"],
    ),
    "a mean of ranks that teaches online": (
        [train("a"), train("b"), ensemble("e", "a", "b", method="rank_mean"), distill("c", "e", how="online")],
        ["rounds.3", "the ensemble 'e' is a mean of ranks"],
    ),
    "a geometric mean that teaches online": (
        [train("a"), train("b"), ensemble("e", "a", "b", method="gmean"), distill("c", "e", how="online")],
        ["rounds.3", "the ensemble 'e' is blended by gmean, which online distillation cannot do", "use stored"],
    ),
    "a stacked ensemble that teaches online": (
        [train("a"), train("b"), ensemble("e", "a", "b", method="stacking"), distill("c", "e", how="online")],
        ["rounds.3", "the ensemble 'e' is blended by stacking"],
    ),
    "a calibrated ensemble that teaches online": (
        [train("a"), train("b"), ensemble("e", "a", "b", calibration="temperature"), distill("c", "e", how="online")],
        ["rounds.3", "the ensemble 'e' is calibrated"],
    ),
    "a single network that should agree": (
        [train("a"), pseudo("b", "a", margin=0.2)],
        ["rounds.1", "teacher.pseudo.margin: a single network agrees with itself"],
    ),
    "a taught teacher of inner folds": (
        [train("a"), pseudo("b", "a"), distill("c", "a", "b", how="cross_fitted")],
        ["rounds.2", "the teacher 'b' was itself taught (by a), which inner folds cannot repeat"],
    ),
    "a taught member of inner folds": (
        [train("a"), pseudo("b", "a"), ensemble("e", "a", "b"), distill("c", "e", how="cross_fitted")],
        ["rounds.3", "the teacher 'b' was itself taught (by a)"],
    ),
    **{
        f"an online teacher of other {key}": (
            [train("a", **{f"input.{key}": value}), distill("b", "a", how="online")],
            ["rounds.1", f"teacher 'a': the teacher sees images of input.{key} {value}, the student of", "to stored"],
        )
        for key, value in {"resize": "crop", "range": "image", "colour": "lab", "local_mean": "subtract"}.items()
    },
    "an online teacher of alpha": (
        [train("a", **{"input.channels": 4}), distill("b", "a", how="online")],
        ["rounds.1", "teacher 'a': the teacher sees an alpha channel"],
    ),
    "an online teacher of columns": (
        [
            train("a", **{"model.metadata.categorical": ["site"]}),
            train("b"),
            ensemble("e", "a", "b"),
            distill("c", "e", features=0.1, weight=0, how="online"),
        ],
        ["rounds.3", "teacher 'a': the teacher needs metadata columns"],
    ),
    "a class that is not there": (
        [train("a"), pseudo("b", "a", min_prob={"cat": 0.5, "wolf": 0.9})],
        ["rounds.1", "teacher.pseudo.min_prob: there is no class wolf; the classes are cat, dog, fox"],
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
    said = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("warning: rank_mean")]
    assert said == [f"goldfold: {line}"]
    assert not (project / "runs").exists()
    assert not (project / "folds").exists()


def test_regression_values_on_which_a_single_network_agrees(project: Path) -> None:
    make_competition(project, "regression")
    (line,) = problems(train("a"), pseudo("b", "a", top_k=3))
    assert "rounds.1: teacher.pseudo.top_k: for a regression it takes the values on which networks agree most" in line
    assert problems(train("a", **{"train.seeds": [1]}), pseudo("b", "a", top_k=3)) == []


def test_check_says_once_what_a_teacher_cannot_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_competition(project)
    path = write(train("a"), pseudo("b", "a", margin=0.2, min_prob={"wolf": 0.9}))
    assert main(["check", path, "--no-decode"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: ")]
    assert [("agrees with itself" in line, "no class wolf" in line) for line in lines] == [(True, False), (False, True)]


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
    rounds = [
        pseudo("b", "pair", margin=0.1),
        distill("c", "tiny", how="cross_fitted"),
        ensemble("d", "tiny", "b", "c"),
    ]
    assert problems(*rounds) == []


def test_check_of_an_experiment_finds_teachers_who_cannot_teach_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    student = [
        "check",
        "configs/tiny.yaml",
        "--no-decode",
        "name=b",
        "teacher.runs=[tiny]",
        "teacher.pseudo.labels=soft",
    ]
    assert main([*student]) == 0
    capsys.readouterr()
    assert main([*student, "teacher.pseudo.margin=0.1"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
    assert "teacher.pseudo.margin: a single network agrees with itself" in line


@pytest.mark.parametrize(
    ("rounds", "fragments"),
    [
        ([pseudo("b", "pair", set={"folds.n": 3})], ["the folds section of 'tiny' in 'pair'", "folds.n"]),
        ([distill("b", "tiny", set={"competition.metric": "accuracy"})], ["'tiny'", "competition.metric"]),
        ([train("a"), ensemble("c", "a", "pair")], ["the member 'pair' is an ensemble"]),
        ([train("a"), ensemble("tiny", "a")], ["'tiny' is the name of a run too"]),
        ([train("pair")], ["'pair' is the name of an ensemble too"]),
        ([pseudo("b", "pear")], ["'pear'", "did you mean 'pair'?"]),
        ([pseudo("b", "tiny", margin=0.1)], ["rounds.0", "a single network agrees with itself"]),
        (
            [distill("b", "pair", how="online", set={"input.range": "image"})],
            ["rounds.0", "'tiny'", "input.range full"],
        ),
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
