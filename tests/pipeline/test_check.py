"""`goldfold check`: each bad input once, by exit code 2 and one line that says where, what and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import save_file

from goldfold.cli import main
from tests.pipeline.competitions import make_competition

Break = Callable[[Path], list[str]]
DATA = Path("data/tiny")


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def check(config: Path, *overrides: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and problem lines; asserts that nothing was written."""
    before = {name: at for name, at in tree(Path()).items() if not name.startswith(".cache")}
    capsys.readouterr()
    code = main(["check", str(config), *overrides])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert {name: at for name, at in tree(Path()).items() if not name.startswith(".cache")} == before
    return code, [line for line in err.splitlines() if line.startswith("goldfold: ")]


def edit(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    def apply(project: Path) -> list[str]:
        path = project / DATA / name
        change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)
        return []

    return apply


def settings(*overrides: str) -> Break:
    return lambda project: list(overrides)


def cell(column: str, value: str, row: int = 0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return change


def write(name: str, content: bytes) -> Break:
    def apply(project: Path) -> list[str]:
        (project / name).write_bytes(content)
        return []

    return apply


def remove(name: str) -> Break:
    def apply(project: Path) -> list[str]:
        (project / name).unlink()
        return []

    return apply


def rare_class(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame[frame["label"] != "fox"], frame[frame["label"] == "fox"].head(1)])


def other_weights(project: Path) -> list[str]:
    import timm

    save_file(timm.create_model("test_resnet").state_dict(), project / "other.safetensors")
    return ["model.pretrained=true", "model.weights=other.safetensors"]


def same_id_in_test(project: Path) -> list[str]:
    known = pd.read_csv(project / DATA / "train.csv", dtype=str)["id"].iloc[0]
    for name in ("test.csv", "sample_submission.csv"):
        edit(name, lambda frame: pd.concat([frame, frame.head(1).assign(id=known)]))(project)
    return []


def changed_after_folds(project: Path) -> list[str]:
    assert main(["folds", "configs/tiny.yaml"]) == 0
    return edit("train.csv", lambda frame: frame.iloc[:-2])(project)


BAD: dict[str, tuple[Break, list[str]]] = {
    "train without the id column": (
        edit("train.csv", lambda frame: frame.rename(columns={"id": "name"})),
        ["train.csv", "the column 'id' is missing", "name", "competition.id"],
    ),
    "test without the id column": (
        edit("test.csv", lambda frame: frame.rename(columns={"id": "name"})),
        ["test.csv", "the column 'id' is missing", "competition.id"],
    ),
    "sample without the id column": (
        edit("sample_submission.csv", lambda frame: frame.rename(columns={"id": "name"})),
        ["sample_submission.csv", "the column 'id' is missing"],
    ),
    "doubled ids in train": (
        edit("train.csv", lambda frame: pd.concat([frame, frame.head(1)])),
        ["train.csv", "duplicate ids", "x"],
    ),
    "doubled ids in test": (
        edit("test.csv", lambda frame: pd.concat([frame, frame.tail(2)])),
        ["test.csv", "duplicate ids"],
    ),
    "doubled ids in the sample": (
        edit("sample_submission.csv", lambda frame: pd.concat([frame, frame.head(1)])),
        ["sample_submission.csv", "duplicate ids"],
    ),
    "an empty id": (edit("train.csv", cell("id", "", 3)), ["train.csv", "empty", "row"]),
    "no target column": (
        edit("train.csv", lambda frame: frame.drop(columns="label")),
        ["train.csv", "the column 'label' is missing", "id, site", "competition.target"],
    ),
    "an unknown label": (
        settings("competition.classes=[cat,dog]"),
        ["train.csv", "unknown label 'fox'", "column 'label', row", "cat, dog"],
    ),
    "ids that leave the folder": (
        edit("train.csv", cell("id", "../../secret", 2)),
        ["train.csv", "../../secret", "leads out of the image folder", "'..'"],
    ),
    "test ids that leave the folder": (
        edit("test.csv", cell("id", "../x", 2)),
        ["test.csv", "../x", "leads out of the image folder"],
    ),
    "ids in train and test": (same_id_in_test, ["test.csv", "1 ids are in the train CSV too", "must differ"]),
    "a class smaller than the folds": (
        edit("train.csv", rare_class),
        ["fox", "2 folds"],
    ),
    "too few groups": (
        settings("competition.group=site", "folds.scheme=group", "folds.n=9"),
        ["folds.n", "9 folds of 8 groups", "lower folds.n"],
    ),
    "a group column that is not there": (
        settings("competition.group=patient", "folds.scheme=group"),
        ["train.csv", "'patient' is missing", "competition.group"],
    ),
    "groups that the scheme would ignore": (
        settings("competition.group=site"),
        ["folds.scheme", "ignores competition.group 'site'", "stratified_group"],
    ),
    "more folds than rows": (settings("folds.n=400", "folds.scheme=kfold"), ["folds.n", "400 folds of 48 rows"]),
    "weights that are not there": (
        settings("model.pretrained=true", "model.weights=none.safetensors"),
        ["none.safetensors", "does not exist", "model.weights"],
    ),
    "weights that are no safetensors": (
        lambda project: [
            *write("w.safetensors", b"\x80\x04pickled")(project),
            "model.pretrained=true",
            "model.weights=w.safetensors",
        ],
        ["w.safetensors", "not a safetensors file", "convert"],
    ),
    "weights of another backbone": (
        other_weights,
        ["other.safetensors", "do not fit test_efficientnet", "model.backbone"],
    ),
    "a sample with other ids": (
        edit("sample_submission.csv", cell("id", "zzz", 1)),
        ["sample_submission.csv", "2 ids are not both here and in test.csv", "zzz"],
    ),
    "a sample with nothing but ids": (
        edit("sample_submission.csv", lambda frame: frame[["id"]]),
        ["sample_submission.csv", "has no column beside the ids"],
    ),
    "a sample with wrong columns": (
        edit("sample_submission.csv", lambda frame: frame.assign(owl="0.5")),
        ["sample_submission.csv", "2 columns", "3 classes", "competition.submission_columns"],
    ),
    "no train CSV": (remove("data/tiny/train.csv"), ["train.csv", "does not exist"]),
    "no test CSV": (remove("data/tiny/test.csv"), ["test.csv", "does not exist"]),
    "no sample submission": (remove("data/tiny/sample_submission.csv"), ["sample_submission.csv", "does not exist"]),
    "an empty train CSV": (write("data/tiny/train.csv", b""), ["train.csv", "the CSV file is empty"]),
    "a train CSV of a header alone": (write("data/tiny/train.csv", b"id,label\n"), ["train.csv", "there are no rows"]),
    "a test CSV of a header alone": (
        write("data/tiny/test.csv", b"id\n"),
        ["sample_submission.csv", "12 ids are not both here and in test.csv"],
    ),
    "a train CSV that is no text": (write("data/tiny/train.csv", b"\xff\xfe\x00\x81"), ["train.csv", "not a readable"]),
    "an image pattern with an unknown column": (
        settings("competition.image_path=data/tiny/images/{file}.png"),
        ["unknown column 'file'", "the columns are id"],
    ),
    "an unknown metric": (
        settings("competition.metric=makro_f1"),
        ["competition.metric", "unknown metric 'makro_f1'", "did you mean 'macro_f1'?"],
    ),
    "a metric of another task": (
        settings("competition.metric=rmse"),
        ["competition.metric", "'rmse' does not suit a multiclass task", "macro_f1"],
    ),
    "an unknown backbone": (
        settings("model.backbone=test_efficientnett"),
        ["model.backbone", "no model 'test_efficientnett'", "test_efficientnet"],
    ),
    "an unknown optimizer": (
        settings("optim.name=adamm"),
        ["optim.name", "no optimizer 'adamm'", "adam"],
    ),
    "an unknown transform": (
        settings("augment.train=[{HorizontalFlp: {p: 0.5}}]"),
        ["augment.train[0].HorizontalFlp", "no such transform", "'HorizontalFlip'"],
    ),
    "a transform's argument of older versions": (
        settings("augment.train=[{CoarseDropout: {max_holes: 8}}]"),
        ["augment.train[0].CoarseDropout", "unknown argument 'max_holes'", "num_holes_range"],
    ),
    "a transform that fails on these channels": (
        settings("input.channels=1", "augment.train=[{HorizontalFlip: {p: 0.5}}, {ISONoise: {p: 0.05}}]"),
        ["augment.train", "fails on images of shape (24, 24, 1)", "change or remove it"],
    ),
    "a transform that changes the channels": (
        settings("augment.train=[{OneOf: {transforms: [{ToGray: {num_output_channels: 1}}], p: 0.01}}]"),
        ["augment.train", "(24, 24, 1)"],
    ),
    "an unknown view": (
        settings("tta.views=[{HorizontalFlipp: {}}]"),
        ["tta.views", "no transform 'HorizontalFlipp'", "HorizontalFlip"],
    ),
    "a view's unknown argument": (
        settings("tta.views=[{Rotate90: {degrees: [90]}}]"),
        ["tta.views", "no argument degrees", "angles"],
    ),
    "a loss of another task": (settings("loss.name=mse"), ["loss.name", "'mse' does not suit", "cross_entropy"]),
    "fp16 on a CPU": (settings("train.precision=fp16"), ["train.precision", "fp16 needs a GPU", "bf16"]),
    "too many frozen stages": (
        settings("model.freeze.stages=99"),
        ["model.freeze.stages", "groups of layers", "use at most"],
    ),
    "means of another number of channels": (
        settings("model.mean=[0.5]"),
        ["model.mean", "1 values for a network of 3 channels"],
    ),
    "a size that the backbone cannot have": (
        settings("model.backbone=test_vit", "input.size=8"),
        ["test_vit", "8"],
    ),
    "a train CSV that changed after the folds": (
        changed_after_folds,
        ["folds/tiny.csv", "2 ids removed", "--remake"],
    ),
    "an unknown key": (settings("train.epoch=3"), ["command line", "unknown key 'train.epoch'", "'train.epochs'"]),
    "a teacher that is not there": (
        settings("teacher.runs=[nobody]", "teacher.pseudo.labels=soft"),
        ["nobody", "not finished", "train it first"],
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_input_is_one_line_and_exit_code_2(case: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    spoil, fragments = BAD[case]
    code, lines = check(config, *spoil(project), capsys=capsys)
    assert code == 2
    assert len(lines) == 1, lines
    for fragment in fragments:
        assert fragment in lines[0]


def test_a_good_configuration_has_no_problems(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project, augment={"preset": "heavy"}, tta={"views": "d4"})
    assert main(["check", str(config)]) == 0
    assert capsys.readouterr().out == "no problems found\n"
    assert {path.name for path in project.iterdir()} <= {"data", "configs", ".cache"}
    assert main(["folds", str(config)]) == 0
    assert check(config, capsys=capsys) == (0, [])


def test_all_unreadable_images_are_listed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    images = project / DATA / "images"
    whole = (images / "004x.png").read_bytes()
    (images / "004x.png").write_bytes(whole[: len(whole) // 2])
    (images / "011x.png").write_bytes(b"")
    (images / "020x.png").unlink()
    (images / "050x.png").write_text("not an image")
    code, lines = check(config, capsys=capsys)
    assert code == 2
    assert len(lines) == 4, lines
    for name in ("004x", "011x", "020x", "050x"):
        assert sum(f"id {name}: " in line and f"images/{name}.png" in line for line in lines) == 1
    by_id = {line.split()[2].rstrip(":"): line for line in lines}
    assert "the file is empty" in by_id["011x"]
    assert "does not exist" in by_id["020x"]
    # Without a look inside, only that the files are there is known.
    code, lines = check(config, "--no-decode", capsys=capsys)
    assert code == 2
    assert len(lines) == 1
    assert "images/020x.png" in lines[0]
    (images / "020x.png").write_bytes(b"")
    assert check(config, "--no-decode", capsys=capsys) == (0, [])


def test_several_problems_are_found_at_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    edit("train.csv", cell("id", "", 3))(project)
    edit("test.csv", lambda frame: pd.concat([frame, frame.head(1)]))(project)
    code, lines = check(
        config, "optim.name=adamm", "tta.views=[{Nothing: {}}]", "augment.train=[{Blurr: {}}]", capsys=capsys
    )
    assert code == 2
    for fragment in ("train.csv: empty", "test.csv: duplicate", "tta.views", "Blurr"):
        assert sum(fragment in line for line in lines) == 1, fragment


def test_an_unknown_key_in_the_file_names_the_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project, train={"bach_size": 4})
    code, lines = check(config, capsys=capsys)
    assert code == 2
    assert lines == [f"goldfold: {config}: unknown key 'train.bach_size'; did you mean 'train.batch_size'?"]


def pipeline_file(project: Path, *rounds: dict[str, object]) -> Path:
    make_competition(project)
    path = Path("configs/pipeline.yaml")
    (project / path).write_text(yaml.safe_dump({"rounds": list(rounds)}))
    return path


TRAIN: dict[str, object] = {"kind": "train", "experiment": "tiny.yaml"}


def test_a_good_pipeline_has_no_problems(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = {"kind": "pseudo_label", "experiment": "tiny.yaml", "name": "second", "teachers": ["tiny"]}
    blend = {"kind": "ensemble", "name": "both", "members": ["tiny", "second"]}
    path = pipeline_file(project, TRAIN, second, blend, {"kind": "submit", "source": "both"})
    assert check(path, capsys=capsys) == (0, [])


@pytest.mark.parametrize(
    ("rounds", "fragments"),
    [
        (
            [TRAIN, {"kind": "ensemble", "name": "all", "members": ["tiny", "tinny"]}],
            ["pipeline.yaml: rounds.1", "'tinny'", "earlier rounds make tiny"],
        ),
        ([TRAIN, TRAIN], ["pipeline.yaml: rounds.1", "the name 'tiny' is taken", "give this round a name"]),
        ([{**TRAIN, "kind": "distill", "teachers": ["tony"]}], ["rounds.0", "'tony'", "nothing"]),
        ([TRAIN, {"kind": "submit", "source": "blend"}], ["rounds.1", "'blend'", "earlier rounds make tiny"]),
        ([TRAIN, {"kind": "ensembel", "name": "x", "members": ["tiny"]}], ["rounds.1.kind", "ensembel"]),
        ([{**TRAIN, "experiment": "none.yaml"}], ["none.yaml", "does not exist"]),
        ([{**TRAIN, "set": {"optim.nam": "sgd"}}], ["optim.nam", "optim.name"]),
        ([TRAIN, {**TRAIN, "name": "other", "set": {"folds.n": 3}}], ["folds section of 'other' differs"]),
        ([{**TRAIN, "set": {"model.backbone": "resnet_18"}}], ["model.backbone", "resnet18"]),
    ],
)
def test_a_bad_pipeline_is_one_line_and_exit_code_2(
    rounds: list[dict[str, object]], fragments: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = check(pipeline_file(project, *rounds), capsys=capsys)
    assert code == 2
    assert len(lines) == 1, lines
    for fragment in fragments:
        assert fragment in lines[0]


def test_unreadable_images_stop_a_training_with_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the store, in this process and in loader processes: what went wrong reaches the user as one line."""
    config = make_competition(project)
    (project / DATA / "images/004x.png").write_bytes(b"broken")
    for overrides in (["input.cache=true"], ["input.cache=false"], ["input.cache=false", "train.workers=2"]):
        capsys.readouterr()
        assert main(["train", str(config), "train.epochs=1", *overrides]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
        assert "images/004x.png" in line
        assert "replace the file" in line


def pool(project: Path, *names: str) -> list[str]:
    """Images without labels, the second of which cannot be read."""
    folder = project / "data/pool"
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / f"{name}.png").write_bytes(
            b"broken" if number == 1 else (project / DATA / "images/000x.png").read_bytes()
        )
    pd.DataFrame({"id": names}).to_csv(folder / "pool.csv", index=False)
    return ["competition.unlabelled=[{csv: data/pool/pool.csv, image_path: 'data/pool/{id}.png'}]"]


def test_images_that_are_to_be_labelled_are_read_and_counted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pipeline_file(
        project,
        TRAIN,
        {"kind": "pseudo_label", "experiment": "tiny.yaml", "name": "second", "teachers": ["tiny"]},
    )
    unlabelled = pool(project, "u1", "u2")
    assert main(["check", str(path), *unlabelled]) == 2
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
    assert "id u2: " in line
    assert "to be pseudo-labelled: 14 images (12 of test, 2 of pool.csv) beside 48 labelled ones" in err
    # An experiment that labels nothing does not look at them.
    assert main(["check", "configs/tiny.yaml", *unlabelled]) == 0
    write("data/pool/pool.csv", b"id\n000x\n")(project)
    code, lines = check(path, *unlabelled, capsys=capsys)
    assert code == 2
    assert any("pool.csv" in line and "ids are also in the train CSV" in line for line in lines)


ONLINE = ["teacher.runs=[tiny]", "teacher.distill.weight=0.5", "teacher.distill.how=online"]


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["folds.seed=1"], ["folds", "seed"]),
        (["competition.classes=[fox, dog, cat]"], ["'tiny'", "classes", "teacher and student need the same labels"]),
        ([*ONLINE[1:], "input.colour=lab"], ["teacher 'tiny'", "colour", "stored"]),
        ([*ONLINE[1:], "input.normalise=image"], ["input.normalise", "stored"]),
    ],
)
def test_a_teacher_that_does_not_fit(
    overrides: list[str], fragments: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_competition(project, rows=24, test_rows=6)
    assert main(["train", str(config), "train.epochs=1"]) == 0
    stored = ["teacher.runs=[tiny]", "teacher.distill.weight=0.5"]
    assert check(config, *stored, capsys=capsys) == (0, [])
    assert check(config, *ONLINE, capsys=capsys) == (0, [])
    code, lines = check(config, *stored, *overrides, capsys=capsys)
    assert code == 2
    for fragment in fragments:
        assert fragment in " ".join(lines)
