"""`goldfold augment-preview`: the sheet shows what training would show the network, draw by draw."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image

from goldfold.config import Config, load_config
from goldfold.errors import BadInput
from goldfold.images import ImageSpec, load
from goldfold.images.colour import InputColours
from goldfold.mix import draw_mix
from goldfold.models import build_model, make_spec
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.contact_sheet import CELL, Section, cell_corner
from goldfold.pipeline.preview import choose_rows, label_of, make_sections, normalised, preview
from goldfold.tasks import Task
from goldfold.training.job import MIX
from tests.pipeline.competitions import make_competition

Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def project(project: Path) -> Path:
    make_competition(project)
    return project


def read(root: Path, *overrides: str) -> Config:
    return load_config(root / "configs/tiny.yaml", list(overrides))


def sections(root: Path, *overrides: str, photos: int = 3, draws: int = 4, seed: int = 0) -> list[Section]:
    return make_sections(read(root, *overrides), Workspace(root), photos, draws, seed)


def grid(section: Section) -> list[list[Pixels]]:
    """The pictures, without empty places."""
    return [[cell.pixels for cell in line.cells if cell is not None] for line in section.lines]


def stored(root: Path, config: Config, name: str) -> Pixels:
    return load(root / f"data/tiny/images/{name}.png", ImageSpec.from_config(config.input))


def boxes(page: Pixels, columns: int) -> list[list[Pixels]]:
    """The pictures on a page, found by the rows in which the first column is not white."""
    left = cell_corner(0)
    marked = (page[:, left : left + CELL] < 250).all(axis=2).mean(axis=1) > 0.9
    starts = [y for y in range(1, len(page)) if marked[y] and not marked[y - 1]]
    return [[page[y : y + CELL, cell_corner(k) : cell_corner(k) + CELL] for k in range(columns)] for y in starts]


def test_the_page_holds_a_grid_of_different_draws(project: Path) -> None:
    config = read(project, "augment.preset=medium", "input.size=48")
    before = {path for path in project.rglob("*") if path.is_file()}
    out = preview(config, Workspace(project), project / "sheets/tiny.png", photos=3, draws=4)
    assert out == project / "sheets/tiny.png"
    assert {path for path in project.rglob("*") if path.is_file()} - before == {out}  # no run, no store, no leftovers
    page = np.asarray(Image.open(out).convert("RGB"))
    found = boxes(page, columns=5)
    assert len(found) == 3
    (section,) = sections(project, "augment.preset=medium", "input.size=48")
    for line, drawn in zip(grid(section), found, strict=True):
        for cell, box in zip(line, drawn, strict=True):
            # Pictures are enlarged without smoothing: every pixel is on the page.
            middle = (np.arange(48) + 0.5) * CELL / 48
            there = box[middle.astype(int)][:, middle.astype(int)]
            assert np.abs(there.astype(int) - cell).mean() < 1
        assert all(not np.array_equal(a, b) for a, b in pairwise(drawn))
    assert not np.array_equal(found[0][0], found[1][0])


def test_photos_are_training_images_as_stored_and_named(project: Path) -> None:
    config = read(project)
    (section,) = sections(project, photos=6)
    train = pd.read_csv(project / "data/tiny/train.csv", dtype=str).set_index("id")
    labels = []
    for number, (line, cells) in enumerate(zip(section.lines, grid(section), strict=True)):
        place, name = line.caption[0].split()
        assert int(place) == number + 1
        assert train.loc[name, "label"] == line.caption[1]
        labels.append(line.caption[1])
        assert all(np.array_equal(cell, stored(project, config, name)) for cell in cells)  # preset none
    assert sorted(labels) == ["cat", "cat", "dog", "dog", "fox", "fox"]
    assert section.heads == ("as stored", "draw 1", "draw 2", "draw 3", "draw 4")
    assert len({line.caption[0] for line in section.lines}) == 6


def test_the_seed_decides(project: Path) -> None:
    one, same, other = (sections(project, "augment.preset=heavy", seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(grid(one[0])[0], grid(same[0])[0], strict=True))
    assert one[0].lines[0].caption == same[0].lines[0].caption
    assert [line.caption for line in one[0].lines] != [line.caption for line in other[0].lines]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixes_are_shown_with_their_share(project: Path, kind: str) -> None:
    config = read(project, f"mix.{kind}=1.0")
    (section,) = sections(project, f"mix.{kind}=1.0", photos=4, draws=3)
    photos = [stored(project, config, line.caption[0].split()[1]).astype(float) for line in section.lines]
    for draw in range(3):
        mixing = draw_mix(config.mix, 4, 24, 24, 0, 0, draw, MIX)
        assert mixing is not None
        for place, line in enumerate(section.lines):
            cell = line.cells[1 + draw]
            assert cell is not None
            partner = int(mixing.partner[place])
            whom = "itself" if partner == place else f"row {partner + 1}"
            assert cell.caption == f"{kind} {mixing.share:.2f}, with {whom}"
            if kind == "mixup":
                mixed = mixing.share * photos[place] + (1 - mixing.share) * photos[partner]
                assert np.abs(cell.pixels - mixed).max() <= 1
            else:
                own = (np.abs(cell.pixels - photos[place]) <= 1).all(axis=2).mean()
                assert own >= mixing.share - 0.01
                assert partner == place or mixing.share == 1 or own < 1
    (sometimes,) = sections(project, f"mix.{kind}=1.0", "mix.prob=0.5", photos=2, draws=12)
    words = [cell.caption.split()[0] for cell in sometimes.lines[0].cells[1:] if cell is not None]
    assert set(words) == {kind, "not"}


def test_erased_boxes_are_shown(project: Path) -> None:
    (section,) = sections(project, "augment.erase.prob=1", "augment.erase.mode=const", photos=4, draws=3)
    mean = np.rint(255 * np.array(make_spec_of(project).mean))
    for line in grid(section):
        for cell in line[1:]:
            changed = (cell != line[0]).any(axis=2)
            assert 0.01 < changed.mean() < 0.4
            assert (np.abs(cell[changed] - mean) <= 1).all()  # zeros after normalising


def make_spec_of(root: Path, *overrides: str) -> Any:
    config = read(root, *overrides)
    return make_spec(config.model, config.input, load_competition(config.competition, root).task)


def test_views_of_augmix(project: Path) -> None:
    overrides = ("loss.jsd=12", "augment.preset=flips", "augment.add=[{AugMix: {severity: 8}}]", "augment.erase.prob=1")
    (section,) = sections(project, *overrides, photos=2)
    assert [line.caption[-1] for line in section.lines] == ["clean", "AugMix", "AugMix again"] * 2
    (plain,) = sections(project, "augment.preset=flips", photos=2)
    clean, first, second = (grid(section)[k] for k in range(3))
    assert all(np.array_equal(a, b) for a, b in zip(clean, grid(plain)[0], strict=True))  # not erased either
    for a, b, c in zip(clean[1:], first, second, strict=True):
        assert not np.array_equal(a, b)
        assert not np.array_equal(a, c)
        assert not np.array_equal(b, c)


def test_phases_have_sections_of_their_own(project: Path) -> None:
    phases = "train.phases=[{epochs: 1, size: 12, augment: {preset: flips}}, {epochs: 1, mix: {mixup: 0.5}, augment: {preset: none}}]"
    first, second = sections(project, phases)
    assert first.title == "Phase 1 of 2, epoch 1: images of 12 x 12"
    assert second.title == "Phase 2 of 2, epoch 2: images of 24 x 24"
    assert grid(first)[0][1].shape == (12, 12, 3)
    assert grid(second)[0][1].shape == (24, 24, 3)
    assert "flips" in first.notes[0]
    assert not [note for note in first.notes if note.startswith("mix:")]
    assert [note for note in second.notes if note.startswith("mix: mixup 0.5")]
    # Smaller images show the whole scene, not a quarter of it: halves are as bright as those of the stored image.
    config = read(project)
    name = first.lines[0].caption[0].split()[1]
    whole = stored(project, config, name).astype(float).mean()
    assert all(cell.astype(float).mean() == pytest.approx(whole, abs=2) for cell in grid(first)[0])


def test_colours_are_shown_as_the_network_sees_them(project: Path) -> None:
    (section,) = sections(project, "input.colour=lab", "input.local_mean=subtract", photos=2)
    config = read(project)
    for line, cells in zip(section.lines, grid(section), strict=True):
        photo = stored(project, config, line.caption[0].split()[1])
        assert np.array_equal(cells[0], photo)
        seen = InputColours("lab", "subtract")(photo[None])[0]
        assert all(np.abs(cell.astype(int) - seen).max() <= 1 for cell in cells[1:])
    assert "input.colour: the planes of lab, shown as red, green and blue" in section.notes
    assert "input.local_mean: subtract" in section.notes


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images(project: Path, channels: int) -> None:
    (section,) = sections(project, f"input.channels={channels}", "augment.preset=flips", "mix.mixup=0.5", photos=2)
    assert {cell.shape for line in grid(section) for cell in line} == {(24, 24, 3)}


def test_rare_classes_have_their_own_preset(project: Path) -> None:
    path = project / "data/tiny/train.csv"
    train = pd.read_csv(path, dtype=str)
    foxes = train.index[train["label"] == "fox"]
    train.drop(foxes[4:]).to_csv(path, index=False)
    (section,) = sections(project, "balance.rare_preset=heavy", photos=6)
    for line, cells in zip(section.lines, grid(section), strict=True):
        rare = line.caption[1] == "fox"
        assert ("rare class" in line.caption) is rare
        assert all(np.array_equal(cell, cells[0]) is not rare for cell in cells[1:])


def test_own_lists_are_named(project: Path) -> None:
    train = "augment.train=[{HorizontalFlip: {p: 0.5}}, {OneOf: {transforms: [{Blur: {}}, {ColorSkew: {}}]}}]"
    (section,) = sections(project, train, "augment.add=[{TrivialAugment: {}}]")
    assert section.notes[0] == "augment.train: HorizontalFlip, OneOf (Blur, ColorSkew); augment.add: TrivialAugment"


@pytest.mark.parametrize("normalise", ["fixed", "image", "image_per_channel"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_normalised_as_the_network_does(project: Path, normalise: str, channels: int) -> None:
    spec = make_spec_of(project, f"input.normalise={normalise}", f"input.channels={channels}")
    pixels = torch.randint(0, 256, (3, 24, 24, channels), dtype=torch.uint8)
    expected = build_model(spec).prepare(pixels)
    assert torch.allclose(normalised(pixels, spec), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "target", "label"),
    [
        (Task("binary", ("ill",), "well"), [0.0], "well"),
        (Task("binary", ("ill",), "well"), [1.0], "ill"),
        (Task("ordinal", ("0", "1", "2")), [0.0, 0.0, 1.0], "2"),
        (Task("multilabel", ("a", "b", "c")), [1.0, 0.0, 1.0], "a, c"),
        (Task("multilabel", ("a", "b")), [0.0, 0.0], "no label"),
        (Task("regression", ("x", "y")), [1.5, 20.0], "1.5, 20"),
    ],
)
def test_labels(task: Task, target: list[float], label: str) -> None:
    assert label_of(task, np.array(target, dtype=np.float32)) == label


@pytest.mark.parametrize("task", ["binary", "ordinal", "regression", "multilabel"])
def test_every_task(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_competition(tmp_path, task)
    data = load_competition(read(tmp_path).competition, tmp_path)
    assert len(set(choose_rows(data, 5, 0))) == 5
    assert len(choose_rows(data, 500, 0)) == 48
    (section,) = sections(tmp_path)
    assert len(section.lines) == 3


class TestRefusals:
    @pytest.mark.parametrize(("photos", "draws"), [(0, 3), (3, 0), (-1, 3)])
    def test_nothing_to_show(self, project: Path, photos: int, draws: int) -> None:
        with pytest.raises(BadInput, match="too few"):
            sections(project, photos=photos, draws=draws)

    def test_one_photo_cannot_be_mixed(self, project: Path) -> None:
        assert len(sections(project, photos=1)[0].lines) == 1
        with pytest.raises(BadInput, match="2 photos for mixing"):
            sections(project, "mix.mixup=0.4", photos=1)

    def test_a_page_too_long(self, project: Path) -> None:
        with pytest.raises(BadInput, match="fewer photos or draws"):
            preview(read(project), Workspace(project), project / "sheet.png", photos=3, draws=400)
        assert not (project / "sheet.png").exists()

    def test_a_bad_transform(self, project: Path) -> None:
        with pytest.raises(BadInput, match=r"augment.add\[0\].Blurr: .*'Blur'"):
            sections(project, "augment.add=[{Blurr: {}}]")

    def test_stored_features(self, project: Path) -> None:
        with pytest.raises(BadInput, match=r"model\.freeze\.cache"):
            sections(project, "model.freeze={stages: all, cache: true}")

    def test_without_matplotlib(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        with pytest.raises(BadInput, match=r'pip install "goldfold\[plot\]"'):
            preview(read(project), Workspace(project), project / "sheet.png")
        assert not (project / "sheet.png").exists()


def test_labels_are_no_formulas(project: Path) -> None:
    path = project / "data/tiny/train.csv"
    train = pd.read_csv(path, dtype=str)
    train["label"] = train["label"].replace({"fox": "$x_{$", "dog": r"$\alpha$"})
    train.to_csv(path, index=False)
    assert preview(read(project), Workspace(project), project / "sheet.png", draws=1).exists()
