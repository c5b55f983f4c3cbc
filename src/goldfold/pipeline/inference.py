"""Predictions of a finished run for any CSV, from its bundles alone."""

from __future__ import annotations

from pathlib import Path

from goldfold.bundle import load_bundle
from goldfold.config import config_from_dict, read_yaml
from goldfold.errors import BadInput
from goldfold.images import Images, ImageSpec, open_images
from goldfold.paths import Workspace, find_input
from goldfold.pipeline.competition import locate_images, read_rows
from goldfold.pipeline.jobs import cache_folder
from goldfold.pipeline.settling import recalled
from goldfold.predict import in_groups, predict_bundles
from goldfold.records import average


def predict_run(name: str, workspace: Workspace, csv: Path | None, pattern: str | None, out: Path | None) -> Path:
    """Predict the images of a CSV with every bundle of a run, over its views. Raises BadInput."""
    paths = workspace.run(name)
    if not paths.config.exists():
        raise BadInput(paths.folder, "there is no such run", "train it first")
    config = config_from_dict(read_yaml(paths.config), paths.config)
    settings = config.competition
    if csv is None:
        if settings.test_csv is None:
            raise BadInput("--csv", "the competition has no test_csv", "name a CSV")
        csv = find_input(workspace.root, settings.name, settings.test_csv)
        pattern = pattern or settings.test_image_path
    folders = sorted(path.parent for path in paths.folder.glob("fold*/DONE"))
    if not folders:
        raise BadInput(paths.folder, "no fold is finished", "goldfold train finishes it")
    if config.tta.views == "auto" and not paths.views.exists():
        raise BadInput(paths.folder, "the views are not chosen yet", "goldfold train chooses them after the last fold")
    rows = read_rows(csv, settings, [])
    ids, images = (
        tuple(rows[settings.id]),
        locate_images(pattern or settings.image_path, rows, workspace.root, settings, csv),
    )
    machine = recalled(config.train, paths.record).predicting
    stores: dict[ImageSpec, Images] = {}
    parts = []
    for group in in_groups(folders, machine):
        loaded = [load_bundle(folder) for folder in group]
        spec = loaded[0][0].images
        if spec not in stores:
            stores[spec] = open_images(cache_folder(config, workspace), ids, images, spec, what=csv.name)
        parts += predict_bundles(
            loaded,
            stores[spec],
            ids,
            batch_size=config.tta.batch_size,
            machine=machine,
            what=f"{name} {', '.join(folder.name for folder in group)}: predicting",
            names=[f"{name} {folder.name}" for folder in group],
            frame=rows,
        )
    out = out or paths.folder / f"predict-{csv.stem}.parquet"
    average(parts, name).write(out, settings.id)
    return out
