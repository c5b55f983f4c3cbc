"""Networks share what they are shown, and full memory costs no finished work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from goldfold.bundle import read_bundle
from goldfold.config.schema import Tta
from goldfold.errors import GoldfoldError
from goldfold.forward import Shown, answers
from goldfold.machine import Machine
from goldfold.memory import ON_CPU, AtOnce
from goldfold.models import Classifier
from goldfold.predict import SHARE_OF_MEMORY, bundle_views, in_groups, predict_members, predict_views
from goldfold.records import Floats, Ints
from goldfold.tta import View, make_views
from tests.inference.packs import Kind, make_members
from tests.models.networks import build

SIZE, ROWS = 32, 21
CPU = Machine(torch.device("cpu"), "fp32", True, 0)
VIEWS = make_views(Tta(views="flips"), SIZE)
ALL = np.arange(ROWS)


class Noise:
    """Images of noise in memory; ``read_rows`` counts how often each was read."""

    ids = tuple(f"n{row}" for row in range(ROWS))
    shape = (SIZE, SIZE, 3)
    digest = None

    def __init__(self) -> None:
        self.read_rows: Counter[int] = Counter()

    def read(self, rows: Ints) -> np.ndarray:
        self.read_rows.update(np.asarray(rows).tolist())
        every = np.random.default_rng(0).integers(0, 256, (ROWS, *self.shape), dtype=np.uint8)
        return every[np.asarray(rows)]


class Full:
    """Memory for so many images at once of each network; counts the images of finished passes, and the failed passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: dict[int, int], error: Exception | None = None) -> None:
        self.done: Counter[int] = Counter()
        self.failed = 0
        forward = Classifier.forward

        def limited(model: Classifier, images: Tensor, metadata: Any = None) -> Tensor:
            if len(images) > most.get(id(model), ROWS):
                self.failed += 1
                raise error or torch.OutOfMemoryError("CUDA out of memory")
            self.done[id(model)] += len(images)
            return forward(model, images, metadata)

        monkeypatch.setattr(Classifier, "forward", limited)


def members(count: int = 3) -> list[Shown]:
    return [Shown(build(size=SIZE, seed=seed), VIEWS, name=f"member {seed}") for seed in range(count)]


def predict(shown: list[Shown], batch_size: int = 16) -> list[Floats]:
    return predict_members(shown, Noise(), ALL, batch_size=batch_size, machine=CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_full_memory_halves_the_batch_and_no_pass_is_repeated(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = members()
    expected = predict(shown)
    full = Full(monkeypatch, {id(member.model): 5 for member in shown}, error)
    found = predict(shown)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert set(full.done.values()) == {ROWS * len(VIEWS)}
    assert full.failed == 2  # 16 and 8, never again
    said = [line for line in capsys.readouterr().err.splitlines() if "memory is full" in line]
    assert [line.split(";")[1].split()[0] for line in said] == ["8", "4"]


def test_what_others_gave_of_a_batch_before_memory_ran_out_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = members()
    expected = predict(shown)
    full = Full(monkeypatch, {id(shown[1].model): 3})
    found = predict(shown)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert full.done == {id(member.model): ROWS * len(VIEWS) for member in shown}
    assert full.failed == 3  # 16, 8, 4


def test_a_single_image_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = members(1)
    Full(monkeypatch, {id(shown[0].model): 0})
    with pytest.raises(GoldfoldError, match=r"^predicting: a single image does not fit into memory; lower tta\.size"):
        predict(shown)
    assert not torch.is_inference_mode_enabled()


def test_other_errors_are_not_taken_for_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = members(1)
    full = Full(monkeypatch, {id(shown[0].model): 4}, RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal"):
        predict(shown)
    assert full.failed == 1


def test_images_are_read_normalised_and_turned_once_for_all_who_see_them_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    prepare = Classifier.prepare

    def counted(model: Classifier, *arguments: Any) -> Tensor:
        counts["prepare"] += 1
        return prepare(model, *arguments)

    monkeypatch.setattr(Classifier, "prepare", counted)

    def watched(view: View) -> View:
        def apply(images: Tensor) -> Tensor:
            counts[view.name] += 1
            return view(images)

        return View(view.name, apply)

    views = [watched(view) for view in VIEWS]
    other = build(size=SIZE, seed=3, mean=(0.1, 0.2, 0.3), std=(0.2, 0.2, 0.2))
    shown = [Shown(member.model, views) for member in members()] + [Shown(other, views[1:3])]
    images = Noise()
    found = predict_members(shown, images, ALL, batch_size=32, machine=CPU)
    assert images.read_rows == Counter(dict.fromkeys(range(ROWS), 1))
    assert counts == {"prepare": 2} | {view.name: 1 + (place in (1, 2)) for place, view in enumerate(views)}
    for member, values in zip(shown, found, strict=True):
        arguments = {"views": member.views, "batch_size": 32, "machine": CPU}
        assert np.array_equal(values, predict_views(member.model, Noise(), ALL, **arguments))


def test_known_views_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = members(2)
    whole = predict([first, second])
    full = Full(monkeypatch, {id(first.model): 2})
    known = {view.name: whole[0][place] for place, view in enumerate(VIEWS) if place != 1}
    found = predict([replace(first, known=known), second])
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, whole, strict=True))
    assert np.array_equal(found[0][0], whole[0][0])
    assert full.done == {id(first.model): ROWS, id(second.model): ROWS * len(VIEWS)}


def test_members_of_other_colours_do_not_share() -> None:
    other = build(size=SIZE, input={"colour": "hsv"})
    with pytest.raises(ValueError, match="not shown the same pixels"):
        predict([*members(1), Shown(other, VIEWS)])


def test_bundles_name_the_same_view_objects_for_the_same_words(tmp_path: Path) -> None:
    """Or networks would not share what they are shown."""
    kind = Kind("run", folds=2, input={"size": SIZE}, views=[{"HorizontalFlip": {}}, {"VerticalFlip": {}}])
    first, second = (read_bundle(part.folder) for part in make_members(tmp_path, [kind], 4)["run"].parts)
    some = replace(second, chosen=("identity", "VerticalFlip"))
    views = bundle_views(first)
    assert bundle_views(second) == views
    assert bundle_views(some) == [view for view in views if view.name in ("identity", "VerticalFlip")]
    larger = replace(some, model=replace(some.model, size=2 * SIZE), views="ten-crop", chosen=None)
    assert not set(bundle_views(larger)) & set(bundle_views(replace(first, views="ten-crop")))


def test_bundles_are_grouped_by_what_they_see_and_what_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [Kind("a", folds=3, input={"size": SIZE}), Kind("b", folds=2, input={"size": SIZE, "colour": "hsv"})]
    sources = make_members(tmp_path, kinds, 4)
    folders = [part.folder for source in sources.values() for part in source.parts]
    assert in_groups(folders, CPU) == [folders[:3], folders[3:]]
    size = max((folder / "model.safetensors").stat().st_size for folder in folders)
    monkeypatch.setattr("goldfold.predict.free_memory", lambda device: 2 * size / SHARE_OF_MEMORY)
    assert in_groups(folders, CPU) == [folders[:2], folders[2:3], folders[3:]]
    monkeypatch.setattr("goldfold.predict.free_memory", lambda device: 0)
    assert in_groups(folders, CPU) == [[folder] for folder in folders]


def test_no_rows_and_no_members() -> None:
    (empty,) = predict_members(members(1), Noise(), ALL[:0], batch_size=4, machine=CPU)
    assert empty.shape == (len(VIEWS), 0, 3)
    assert predict([]) == []


def test_on_a_cpu_batches_stay_small() -> None:
    assert AtOnce(128, torch.device("cpu"), "fp32", "").most == ON_CPU["fp32"] == 32
    assert AtOnce(8, torch.device("cpu"), "fp32", "").most == 8
    assert AtOnce(512, torch.device("cuda"), "bf16", "").most == 512
    model = build(size=SIZE).eval()
    pixels = torch.from_numpy(Noise().read(ALL))
    for precision in ("fp32", "bf16"):
        machine = replace(CPU, precision=precision)
        whole, parts = (
            answers([Shown(model, VIEWS)], pixels, machine, AtOnce(most, CPU.device, precision, ""))[0]
            for most in (ROWS, 4)
        )
        assert torch.allclose(whole, parts, atol=1e-6 if precision == "fp32" else 0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    MACHINE = Machine(torch.device("cuda", 0), "fp32", True, 0)

    def on(self) -> list[Shown]:
        shown = members()
        for member in shown:
            member.model.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
        return shown

    @pytest.mark.parametrize("batch_size", [2, 5, 64])
    def test_it_predicts_what_the_cpu_does(self, batch_size: int) -> None:
        expected = predict(members())
        found = predict_members(self.on(), Noise(), ALL, batch_size=batch_size, machine=self.MACHINE)
        assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))

    def test_no_batch_makes_the_gpu_wait(self) -> None:
        shown = self.on()
        predict_members(shown, Noise(), ALL, batch_size=4, machine=self.MACHINE)  # constants find their way
        torch.cuda.set_sync_debug_mode("error")
        try:
            predict_members(shown, Noise(), ALL, batch_size=4, machine=self.MACHINE)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_memory_that_is_really_full_halves_the_batch(self, capsys: pytest.CaptureFixture[str]) -> None:
        (shown, *_) = self.on()
        pixels = torch.randint(0, 256, (512, 128, 128, 3), dtype=torch.uint8)
        at_once = AtOnce(16, self.MACHINE.device, "fp32", "few")
        expected = answers([shown], pixels, self.MACHINE, at_once)[0].cpu()
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_reserved() + 200 * 2**20
        torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.get_device_properties(0).total_memory)
        try:
            found = answers([shown], pixels, self.MACHINE, AtOnce(512, self.MACHINE.device, "fp32", "many"))[0].cpu()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert "many: memory is full; 256 images at once" in capsys.readouterr().err
        assert torch.allclose(found, expected, atol=1e-4)
