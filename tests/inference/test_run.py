"""The engine through its entry: what is submitted, whatever the test set, the files and the devices are like."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from goldfold import files
from goldfold.inference import engine, networks
from goldfold.inference.networks import Network
from goldfold.inference.run import Settings, main, predict
from goldfold.kaggle.manifest import write_manifest
from goldfold.machine import Machine
from goldfold.models import Classifier
from goldfold.records import Predictions
from tests.inference.packs import TASK, Example, Kind, make_example, write_test_set

Make = Callable[..., Settings]


def submission(settings: Settings) -> pd.DataFrame:
    return files.read_csv(settings.working / "submission.csv")


def report(settings: Settings) -> dict[str, Any]:
    found = json.loads((settings.working / "inference.json").read_text())
    assert isinstance(found, dict)
    return found


def folds_of(settings: Settings) -> dict[str, int]:
    return {member["name"]: member["folds"] for member in report(settings)["members"]}


def copied(example: Example, tmp_path: Path) -> Example:
    """An example whose inputs may be changed."""
    shutil.copytree(example.input, tmp_path / "input")
    pack = tmp_path / "input" / example.pack.relative_to(example.input)
    return replace(example, input=tmp_path / "input", pack=pack)


def values_of(frame: pd.DataFrame, ids: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return frame.set_index("id").loc[ids, list(TASK.classes)].to_numpy(dtype=np.float64)


def test_the_submission_is_that_of_goldfold_predict_to_the_bit(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads: Counter[str] = Counter()
    read = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads[path.name] += path.suffix == ".png"
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    given = settings(example)
    assert predict(given) == 0
    monkeypatch.undo()
    assert submission(given).equals(example.submission(example.expected()))
    assert sorted(+reads) == sorted(f"{name}.png" for name in example.test()["id"])
    assert set((+reads).values()) == {1}  # for all members, sizes, colours and views
    found = report(given)
    assert found["complete"]
    assert (found["rows"], found["predicted"], found["unreadable"], found["failed"]) == (24, 24, 0, {})
    record = files.read_json(example.pack / "ensemble.json")
    assert found["score"] == record["cross_fitted"]["score"]
    assert {each["name"]: each["weight"] for each in found["members"]} == pytest.approx(
        {each["name"]: each["weight"] for each in record["members"]}
    )
    said = capsys.readouterr().err.splitlines()
    assert "wrote" in said[3]
    assert "the prior alone" in said[3]
    assert "everything is done" in said[-1]


def test_a_run_alone(tmp_path: Path, settings: Make) -> None:
    example = make_example(tmp_path / "example", [Kind("solo", folds=3, views="flips")], rows=10)
    given = settings(example)
    assert predict(given) == 0
    assert submission(given).equals(example.submission(example.expected()))
    assert folds_of(given) == {"solo": 3}


def test_another_blend_with_fitted_decisions(tmp_path: Path, settings: Make) -> None:
    kinds = [Kind("one", folds=1, skill=0.6), Kind("two", folds=1, skill=0.7, input={"size": 20})]
    made = make_example(tmp_path / "example", kinds, rows=12, method="rank_mean", metric="macro_f1", decisions="fitted")
    given = settings(made)
    assert predict(given) == 0
    assert submission(given).equals(made.submission(made.expected()))
    assert list(submission(given).columns) == ["id", "label"]


@pytest.mark.parametrize(("rows", "sample"), [(0, True), (0, False), (1, True)])
def test_no_and_one_test_image(example: Example, settings: Make, tmp_path: Path, rows: int, sample: bool) -> None:
    own = copied(example, tmp_path)
    shutil.rmtree(own.competition)
    write_test_set(own.competition, rows, seed=7, sample=sample)
    given = settings(own)
    assert predict(given) == 0
    found = submission(given)
    assert list(found["id"]) == ["000x"][:rows]
    assert list(found.columns) == ["id", *TASK.classes]
    assert report(given)["complete"]
    if rows and sample:
        assert found.equals(own.submission(own.expected()))


def test_unreadable_images_get_the_prior(
    example: Example, settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied(example, tmp_path)
    whole = example.submission(example.expected())
    (own.competition / "images" / "003x.png").write_bytes(b"no image")
    (own.competition / "images" / "017x.png").unlink()
    given = settings(own)
    assert predict(given) == 0
    found = submission(given)
    assert list(found["id"]) == list(whole["id"])
    bad = found["id"].isin(["003x", "017x"])
    assert found[~bad].equals(whole[~bad])
    assert values_of(found, ["003x", "017x"]) == pytest.approx(np.full((2, 3), 1 / 3), abs=1e-6)
    assert report(given)["unreadable"] == 2
    said = capsys.readouterr().err
    assert "2 of 24 images are unreadable and get the prior" in said
    assert "017x.png: the image does not exist" in said


def test_a_test_set_without_a_single_readable_image(example: Example, settings: Make, tmp_path: Path) -> None:
    own = copied(example, tmp_path)
    shutil.rmtree(own.competition / "images")
    given = settings(own)
    assert predict(given) == 0
    assert len(submission(given)) == report(given)["unreadable"] == 24


def break_weights(pack: Path, member: str, fold: int) -> None:
    """Cut off a weights file that this fold alone reads."""
    record = files.read_json(pack / "pack.json")
    used = Counter(path for each in record["members"] for part in each["folds"] for path in part["weights"])
    own = next(each for each in record["members"] if each["name"] == member)["folds"][fold]["weights"]
    path = pack / next(path for path in own if used[path] == 1)
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("fault", ["weights", "bundle", "classes"])
def test_a_broken_network_is_left_out_and_the_member_counts_with_its_other_folds(
    example: Example, settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    own = copied(example, tmp_path)
    bundle = own.pack / "members" / "strong" / "fold0" / "bundle.json"
    if fault == "weights":
        break_weights(own.pack, "strong", 0)
    elif fault == "bundle":
        bundle.unlink()
    else:
        record = json.loads(bundle.read_text())
        record["task"]["classes"] = ["dog", "cat", "fox"]
        bundle.write_text(json.dumps(record))
        write_manifest(own.pack, "both")  # exported so
    given = settings(own)
    assert predict(given) == 0
    assert folds_of(given) == {"cheap": 2, "other": 2, "strong": 1}
    assert list(report(given)["failed"]) == ["strong fold0"]
    assert not report(given)["complete"]
    warned = [line for line in capsys.readouterr().err.splitlines() if "fold0" in line and "warning" in line]
    assert len(warned) == 1
    # Nothing but that fold is missing: the blend is the stored one.
    blend = {each["name"]: each["weight"] for each in files.read_json(own.pack / "ensemble.json")["members"]}
    tables = {name: example.member_values(name, [1] if name == "strong" else None) for name in blend}
    expected = TASK.normalise(np.sum([weight * tables[name].values for name, weight in blend.items()], axis=0))
    ids = list(example.test()["id"])
    assert values_of(submission(given), ids) == pytest.approx(expected, abs=1e-5)


def test_a_member_without_any_network_is_left_out_of_the_blend(
    example: Example, settings: Make, tmp_path: Path
) -> None:
    own = copied(example, tmp_path)
    shutil.rmtree(own.pack / "members" / "strong")
    given = settings(own)
    assert predict(given) == 0
    found = report(given)
    weights = {each["name"]: each["weight"] for each in found["members"]}
    assert weights["strong"] == 0
    assert weights["cheap"] + weights["other"] == pytest.approx(1)
    assert found["score"] > files.read_json(own.pack / "ensemble.json")["cross_fitted"]["score"]  # a loss
    tables = {name: example.member_values(name).values for name in ("cheap", "other")}
    expected = TASK.normalise(weights["cheap"] * tables["cheap"] + weights["other"] * tables["other"])
    assert values_of(submission(given), list(example.test()["id"])) == pytest.approx(expected, abs=1e-5)


def test_without_out_of_fold_tables_the_whole_is_still_right(
    example: Example, settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied(example, tmp_path)
    (own.pack / "oof" / "cheap.parquet").write_bytes(b"cut")
    given = settings(own)
    assert predict(given) == 0
    assert submission(given).equals(example.submission(example.expected()))
    assert "scaled up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pack.json", "{}", "not those that were exported"),
        ("ensemble.json", "{}", "not those that were exported"),
        ("MANIFEST.json", "no", "not valid JSON"),
    ],
)
def test_a_broken_pack_is_one_line(
    example: Example, settings: Make, tmp_path: Path, name: str, text: str, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    own = copied(example, tmp_path)
    (own.pack / name).write_text(text)
    given = settings(own)
    env = {"GOLDFOLD_INPUT": str(own.input), "GOLDFOLD_WORKING": str(given.working)}
    assert main(env) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("goldfold: ")
    assert message in last
    if name == "ensemble.json":  # the test set was read by then
        assert len(submission(given)) == 24


def test_nothing_that_can_be_used_is_one_line_beside_a_valid_submission(
    example: Example, settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied(example, tmp_path)
    shutil.rmtree(own.pack / "members")
    given = settings(own)
    env = {"GOLDFOLD_INPUT": str(own.input), "GOLDFOLD_WORKING": str(given.working)}
    assert main(env) == 2
    assert "no network could be used" in capsys.readouterr().err.splitlines()[-1]
    assert len(submission(given)) == 24


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main({"GOLDFOLD_HOURS": "soon"}) == 2
    assert main({"GOLDFOLD_INPUT": str(tmp_path), "GOLDFOLD_WORKING": str(tmp_path)}) == 2
    assert [line.startswith("goldfold: ") for line in capsys.readouterr().err.splitlines()] == [True, True]


def test_two_devices_share_every_network(example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: dict[str, set[int]] = {}
    whole = Network.predict

    def watched(self: Network, pixels: Tensor, metadata: Any) -> Any:
        workers.setdefault(self.unit.name, set()).add(id(self))
        return whole(self, pixels, metadata)

    monkeypatch.setattr(Network, "predict", watched)
    given = settings(example)
    assert predict(given, devices=[torch.device("cpu")] * 2) == 0
    assert submission(given).equals(example.submission(example.expected()))
    assert max(len(found) for found in workers.values()) >= 2


def test_images_that_the_store_has_no_room_for_come_in_parts(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FEWEST_ROWS", 8)
    reads: Counter[str] = Counter()
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: (reads.update([path.name] if path.suffix == ".png" else []), read(path))[1]
    )
    given = settings(example, store_gb=1e-5)
    assert predict(given) == 0
    monkeypatch.undo()
    found = report(given)
    assert {step["part"] for step in found["steps"]} == set(range(3))
    assert found["complete"]
    assert submission(given).equals(example.submission(example.expected()))
    assert set(reads.values()) == {1}
    assert len(reads) == 24


def test_full_memory_halves_the_batch_and_loses_nothing(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[int] = []
    forward = Classifier.forward

    def small(self: Classifier, images: Tensor, metadata: Any = None) -> Tensor:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shown.append(len(images))
        return forward(self, images, metadata)

    monkeypatch.setattr(Classifier, "forward", small)
    given = settings(example)
    assert predict(given) == 0
    assert len(shown) == 24 * 2 * (1 + 2 + 2)  # images, folds, views of the three members
    monkeypatch.undo()
    ids = list(example.test()["id"])
    assert values_of(submission(given), ids) == pytest.approx(example.expected().take(ids).values, abs=1e-5)
    assert "memory is full; 2 images at once from now on" in capsys.readouterr().err


def test_one_image_that_is_too_large_costs_the_network(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Classifier.forward

    def none(self: Classifier, images: Tensor, metadata: Any = None) -> Tensor:
        if self.spec.size == 32:
            raise MemoryError
        return forward(self, images, metadata)

    monkeypatch.setattr(Classifier, "forward", none)
    given = settings(example)
    assert predict(given) == 0
    assert folds_of(given) == {"cheap": 2, "other": 2, "strong": 0}
    assert "does not fit into memory" in report(given)["failed"]["strong fold1"]


def test_nan_in_half_precision_is_computed_again_in_float32(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, machine_for = networks.answers, networks.machine_for
    monkeypatch.setattr(
        networks, "machine_for", lambda member, device: replace(machine_for(member, device), precision="bf16")
    )

    def overflowing(members: Any, pixels: Tensor, machine: Machine, at_once: Any) -> list[Tensor]:
        seen = forward(members, pixels, machine, at_once)
        return seen if machine.precision == "fp32" else [each * torch.nan for each in seen]

    monkeypatch.setattr(networks, "answers", overflowing)
    given = settings(example)
    assert predict(given) == 0
    assert submission(given).equals(example.submission(example.expected()))
    assert "gives NaN in bf16; it goes on in float32" in capsys.readouterr().err


def test_a_network_that_gives_nan_is_left_out(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = networks.answers

    def broken(members: Any, *rest: Any) -> list[Tensor]:
        seen = forward(members, *rest)
        return [each * torch.nan for each in seen] if members[0].model.spec.size == 16 else seen

    monkeypatch.setattr(networks, "answers", broken)
    given = settings(example)
    assert predict(given) == 0
    assert folds_of(given) == {"cheap": 0, "other": 2, "strong": 2}
    assert report(given)["failed"] == {
        f"cheap fold{fold}": f"cheap fold{fold}: the network gives NaN" for fold in (0, 1)
    }


def test_a_device_that_breaks_down_leaves_its_work_to_the_others(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = networks.answers
    calls = iter(range(1000))

    def failing(*arguments: Any) -> list[Tensor]:
        if next(calls) == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return forward(*arguments)

    monkeypatch.setattr(networks, "answers", failing)
    given = settings(example)
    assert predict(given, devices=[torch.device("cpu")] * 2) == 0
    assert submission(given).equals(example.submission(example.expected()))
    assert report(given)["failed"] == {}
    assert "cpu failed, and is not used any more: CUDA error" in capsys.readouterr().err


def test_a_bug_in_a_networks_code_costs_that_network_alone(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = networks.answers

    def buggy(members: Any, *rest: Any) -> list[Tensor]:
        if members[0].model.spec.size == 24:
            raise IndexError("out of range")
        return forward(members, *rest)

    monkeypatch.setattr(networks, "answers", buggy)
    given = settings(example)
    assert predict(given) == 0
    assert report(given)["failed"]["other fold0"] == "other fold0: IndexError: out of range"
    assert folds_of(given) == {"cheap": 2, "other": 0, "strong": 2}


def test_the_submission_is_whole_at_any_moment(
    example: Example, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(example)
    seen: list[int] = []
    whole = Network.predict

    def looking(self: Network, pixels: Tensor, metadata: Any) -> Any:
        seen.append(len(submission(given)))
        return whole(self, pixels, metadata)

    monkeypatch.setattr(Network, "predict", looking)
    assert predict(given) == 0
    assert len(seen) == 36
    assert set(seen) == {24}


def test_predictions_of_the_example_tell_images_apart(example: Example) -> None:
    """Else the comparisons above would hold for a constant."""
    for kind in example.kinds:
        found: Predictions = example.member_values(kind.name)
        assert found.values.std(axis=0).min() > 0.01
