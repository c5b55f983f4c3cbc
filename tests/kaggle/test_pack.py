"""A pack gives back the very networks and tables that went in, each weight stored once, and nothing else is believed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from goldfold.bundle import load_bundle as load_run_bundle
from goldfold.errors import BadInput
from goldfold.kaggle import pack as packs
from goldfold.kaggle.pack import Pack, Rounding, load_bundle, read_bundle, read_oof, read_pack, read_truth, write_pack
from goldfold.kaggle.weights import rounded, share_weights
from goldfold.models import Classifier
from goldfold.tasks import Task
from tests.kaggle.packs import IDS, SIZE, make_head, write_example

PIXELS = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pack")
    write_example(folder)
    write_example(folder, "float16", target=folder / "half")
    return folder


@pytest.fixture
def pack(root: Path) -> Pack:
    return read_pack(root / "pack")


def probabilities(model: Classifier) -> Tensor:
    with torch.inference_mode():
        return model.probabilities(model(model.prepare(PIXELS)))


def copied(pack: Pack, to: Path) -> Pack:
    """The pack without its weights and wheels, to be broken."""
    for path in ("pack.json", "members/shared/fold0/bundle.json"):
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_bytes((pack.folder / path).read_bytes())
    return replace(pack, folder=to)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_networks_predict_what_they_did(root: Path, pack: Pack) -> None:
    torch.manual_seed(1)  # a network built at random would differ
    for member in pack.members:
        for fold in member.folds:
            bundle, model = load_bundle(pack, member, fold)
            expected, original = load_run_bundle(root / "runs" / member.name / f"fold{fold.fold}")
            assert bundle == expected == read_bundle(pack, fold)
            assert not model.training
            assert torch.equal(probabilities(model), probabilities(original))


def test_shared_tensors_are_stored_once(root: Path, pack: Pack) -> None:
    stored = [(name, value) for path in (pack.folder / "weights").iterdir() for name, value in load_file(path).items()]
    given = [load_file(path) for path in (root / "runs").rglob("*.safetensors")]
    assert len(given) == 3
    # Two networks differ in one matrix only.
    assert len(stored) == len(given[0].keys() & given[1].keys()) + 1 + len(load_file_of(root, "single"))
    first, second = (set(fold.weights) for fold in pack.member("shared").folds)
    assert first & second
    assert first != second
    assert not first & set(pack.member("single").folds[0].weights)


def load_file_of(root: Path, run: str) -> dict[str, Tensor]:
    return load_file(root / "runs" / run / "fold0" / "model.safetensors")


def test_the_files_of_a_network_are_those_that_it_reads(pack: Pack) -> None:
    for member in pack.members:
        for fold in member.folds:
            named = set(json.loads((pack.folder / fold.bundle / "bundle.json").read_text())["tensors"].values())
            assert set(fold.weights) == named
            assert set(fold.files) == {*named, f"{fold.bundle}/bundle.json"}


def test_a_fresh_process_needs_no_training_code_and_the_memory_of_one_bundle(tmp_path: Path) -> None:
    # Its peak is not yet that of other tests. A bundle has 24 MB, all together 144 MB.
    code = """
import resource, sys
import goldfold.kaggle.pack
rooms = ("training", "data", "optim", "losses", "mix", "averaging", "teaching", "features", "rounds", "pipeline")
print([room for room in rooms if f"goldfold.{room}" in sys.modules])
from pathlib import Path
import torch
from safetensors.torch import save_file
from goldfold.kaggle.weights import share_weights
root = Path(sys.argv[1])
bundles = {}
for number in range(6):
    bundles[f"members/{number}"] = root / f"{number}.safetensors"
    save_file({"a": torch.full((3000, 1000), float(number)), "b": torch.ones(3000, 1000)}, bundles[f"members/{number}"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shared = share_weights(bundles, root / "pack", half=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, len(set(shared.places["members/0"].values())))
"""
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == "[]"
    megabytes, files_of_one = map(int, printed[1].split())
    assert megabytes < 80
    assert files_of_one == 2
    assert sum(path.stat().st_size for path in (tmp_path / "pack").rglob("*.safetensors")) < 7.1 * 6_000_000


def test_float16_rounds_matrices_and_no_vectors(root: Path) -> None:
    half, whole = read_pack(root / "half"), read_pack(root / "pack")
    member = half.member("shared")
    _, model = load_bundle(half, member, member.folds[0])
    _, original = load_bundle(whole, whole.member("shared"), member.folds[0])
    expected = {name: rounded(value).to(value.dtype) for name, value in original.inference_state().items()}
    found = model.inference_state()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert torch.equal(found["head.bias"], original.head.bias)
    assert not torch.equal(found["head.weight"], original.head.weight)
    sizes = [sum(path.stat().st_size for path in (pack.folder / "weights").iterdir()) for pack in (half, whole)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.full((2, 2), 0.1), torch.float16),
        (torch.full((2, 2), 70000.0), torch.float32),  # beyond float16's largest
        (torch.full((4,), 0.1), torch.float32),
        (torch.tensor([[1.0, float("inf")]]), torch.float16),
        (torch.ones(2, 2, dtype=torch.int64), torch.int64),
    ],
)
def test_what_is_rounded(tensor: Tensor, kind: torch.dtype) -> None:
    assert rounded(tensor).dtype == kind


def test_nothing_finite_becomes_infinite(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([[1e5, 1.0]]), "v": torch.tensor([[0.1, 1.0]])}, tmp_path / "in.safetensors")
    share_weights({"members/a": tmp_path / "in.safetensors"}, tmp_path, half=True)
    state = packs.read_tensors(tmp_path, {"w": "weights/0.safetensors", "v": "weights/0.safetensors"})
    assert torch.equal(state["w"], torch.tensor([[1e5, 1.0]]))
    assert torch.equal(state["v"], torch.tensor([[0.1, 1.0]]).half().float())


@pytest.mark.parametrize("rounding", [None, Rounding(10, "auc", 0.5, None, 1e-4)])
def test_the_description_comes_back_equal(rounding: Rounding | None, pack: Pack, tmp_path: Path) -> None:
    changed = replace(pack, folder=tmp_path, rounding=rounding, hours=0.5)
    write_pack(changed)
    assert read_pack(tmp_path) == changed


def test_tables_come_back(root: Path, pack: Pack) -> None:
    oof = read_oof(pack, "shared")
    assert (root / "runs/shared/oof.parquet").read_bytes() == (pack.folder / "oof/shared.parquet").read_bytes()
    assert oof.fold is not None
    truth = read_truth(pack)
    assert truth.ids == IDS
    assert truth.fold.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(truth.targets.argmax(axis=1), [0, 1, 2, 0, 1, 2])
    with pytest.raises(BadInput, match="has no member 'nobody'; it has shared, single"):
        pack.member("nobody")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format=2), "not a pack of format 1"),
        (lambda values: values.pop("prior"), "prior"),
        (lambda values: values.update(members=[]), "0 members"),
        (lambda values: values.update(prior=[1.0]), "1 priors"),
        (lambda values: values.update(command="rm"), "command"),
        (lambda values: values["task"].update(colour="red"), "colour"),
        (lambda values: values["members"][0].pop("views"), "views"),
        (lambda values: values["members"][0].update(name="../../x"), "not a path within the pack"),
        (lambda values: values["members"][0]["folds"][0].update(bundle="/etc"), "not a path within the pack"),
        (lambda values: values["members"][0]["folds"][0].update(weights=["../w"]), "not a path within the pack"),
        (lambda values: values["members"][0]["folds"][0].pop("bundle"), "bundle"),
    ],
)
def test_another_description_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, pack: Pack, tmp_path: Path
) -> None:
    edit(copied(pack, tmp_path).folder / "pack.json", change)
    with pytest.raises(BadInput, match=message) as caught:
        read_pack(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["task"].update(classes=["dog", "cat", "fox"]), "dog, cat, fox.*cat, dog, fox"),
        (lambda values: values.pop("tensors"), "where its tensors lie"),
        (lambda values: values["tensors"].update({"head.weight": "../../x"}), "not a path within the pack"),
        (lambda values: values["tensors"].update({"head.weight": "weights/99.safetensors"}), "does not exist"),
        (lambda values: values.update(format=9), "not a bundle of format"),
    ],
)
def test_another_bundle_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, pack: Pack, tmp_path: Path
) -> None:
    broken = copied(pack, tmp_path)
    (tmp_path / "weights").symlink_to(pack.folder / "weights")
    edit(tmp_path / "members/shared/fold0/bundle.json", change)
    member = broken.member("shared")
    with pytest.raises(BadInput, match=message):
        load_bundle(broken, member, member.folds[0])


def test_broken_weights_are_named(pack: Pack, tmp_path: Path) -> None:
    broken = copied(pack, tmp_path)
    member = broken.member("shared")
    (tmp_path / "weights").mkdir()
    for path in member.folds[0].weights:
        content = (pack.folder / path).read_bytes()
        (tmp_path / path).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_bundle(broken, member, member.folds[0])
    for path in member.folds[0].weights:  # whole files, of another network
        save_file({name: torch.zeros(2) for name in load_file(pack.folder / path)}, tmp_path / path)
    with pytest.raises(BadInput, match="the weights of 'shared' do not fit"):
        load_bundle(broken, member, member.folds[0])


def test_tables_of_other_classes_are_refused(pack: Pack) -> None:
    other = replace(pack, task=Task("multiclass", ("fox", "dog", "cat")))
    for read in (lambda: read_truth(other), lambda: read_oof(other, "single")):
        with pytest.raises(BadInput, match="classes cat, dog, fox instead of fox, dog, cat"):
            read()


def test_the_pack_of_a_run_has_no_tables(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"truth\.parquet: the file does not exist"):
        read_truth(make_head(tmp_path, kind="run"))
    assert make_head(tmp_path, kind="run").ensemble is None
