"""One fold's job without teachers: its rows, what other data sets add, its network. ``teaching`` adds teachers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from goldfold.augment import centre, try_augmenter
from goldfold.augment.device import try_device_augmenter
from goldfold.bundle import prediction_images
from goldfold.config import Config
from goldfold.data import Examples, add_external, labelled, rows_of
from goldfold.errors import BadInput
from goldfold.images import Images, ImageSpec, open_images
from goldfold.images.colour import InputColours
from goldfold.losses import AuxiliaryTask, make_auxiliary
from goldfold.metadata import MetadataEncoder, fit_metadata
from goldfold.models import MetadataShape, ModelSpec, make_spec
from goldfold.paths import FoldPaths, Workspace, find_input
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.external import ExternalData, UnlabelledData, load_external, load_unlabelled, outside
from goldfold.records import FoldTable, Ints
from goldfold.training import FoldJob, Recipe
from goldfold.training.plan import make_plan

STATISTICS_OF = 512
"""Images that the pixel mean and deviation of a colour space are measured on."""


@dataclass(frozen=True, eq=False)
class Sources:
    """The images of an experiment, opened once for all folds.

    ``unlabelled`` is empty unless they are to be pseudo-labelled.
    ``valid`` and ``predicted``: the train and test images as prediction sees them (``bundle.prediction_images``); the very
    same stores as ``train`` and ``test`` unless ``tta.size`` asks for larger ones.
    """

    train: Images
    test: Images | None
    external: tuple[tuple[ExternalData, Images], ...] = ()
    unlabelled: tuple[tuple[UnlabelledData, Images], ...] = ()
    valid: Images | None = None
    predicted: Images | None = None


def open_sources(config: Config, data: CompetitionData, workspace: Workspace) -> Sources:
    """Decode and store what is not yet stored. Raises BadInput on unreadable images and bad external tables."""
    spec = ImageSpec.from_config(config.input)
    folder = cache_folder(config, workspace)
    train = open_images(folder, data.ids, data.train_paths, spec, what="train images")
    test = None
    if data.test_csv is not None:
        test = open_images(folder, data.test_ids, list(data.test_paths), spec, what="test images")
    sets = load_external(config.competition, data.task, workspace.root, data.ids, data.test_ids)
    external = tuple((part, open_images(folder, part.ids, part.paths, spec, what=part.csv.name)) for part in sets)
    unlabelled: tuple[tuple[UnlabelledData, Images], ...] = ()
    if labels_unlabelled(config):
        pools = load_unlabelled(config.competition, workspace.root, data.ids, data.test_ids, sets)
        unlabelled = tuple(
            (part, open_images(folder, part.ids, part.paths, spec, what=part.csv.name)) for part in pools
        )
    larger = prediction_images(config.input, config.tta)
    valid, predicted = train, test
    if larger != spec:
        valid = open_images(folder, data.ids, data.train_paths, larger, what="train images at tta.size")
        if data.test_csv is not None:
            predicted = open_images(
                folder, data.test_ids, list(data.test_paths), larger, what="test images at tta.size"
            )
    return Sources(train, test, external, unlabelled, valid, predicted)


def labels_unlabelled(config: Config) -> bool:
    """Whether ``competition.unlabelled`` is pseudo-labelled in this experiment."""
    pseudo = config.teacher.pseudo
    return pseudo.labels != "none" and pseudo.images != "test" and bool(config.competition.unlabelled)


def cache_folder(config: Config, workspace: Workspace) -> Path | None:
    """Where decoded images are stored; None: they are decoded each time."""
    if not config.input.cache:
        return None
    return workspace.root / config.input.cache_dir if config.input.cache_dir else workspace.cache()


def plain_job(
    config: Config,
    data: CompetitionData,
    workspace: Workspace,
    table: FoldTable,
    fold: int,
    seed: int,
    paths: FoldPaths,
    sources: Sources,
    fingerprint: str,
    hidden: tuple[str, ...] = (),
) -> FoldJob:
    """All that training this fold needs but teachers. Raises BadInput.

    ``hidden``: ids beside the validated ones whose pictures no external data set may bring in.
    """
    assert config.name is not None
    train_ids, valid_ids = table.train_ids(fold), table.valid_ids(fold)
    encoder = fit_encoder(config, data, train_ids)
    auxiliary, columns, masks = fit_auxiliary(config, data, train_ids)
    rows = data.rows_of(train_ids)
    examples = labelled(
        sources.train,
        train_ids,
        data.targets_of(train_ids),
        metadata=None
        if encoder is None
        else encoder.transform(data.train.iloc[rows], data.train_csv, data.settings.id),
        auxiliary=columns[rows],
        auxiliary_weights=masks[rows],
    )
    mean = std = None
    if data.task.name == "regression":
        mean = tuple(float(value) for value in examples.targets.mean(axis=0, dtype=np.float64))
        std = tuple(max(float(value), 1e-6) for value in examples.targets.std(axis=0, dtype=np.float64))
    spec = fold_spec(config, data, encoder, sources.train, rows_of(sources.train, train_ids))
    examples = _extended(config, fold, examples, sources, rows_of(sources.train, (*valid_ids, *hidden)), encoder)
    weights = config.model.weights if config.model.pretrained else None
    test_metadata = None
    if encoder is not None and sources.test is not None and data.test is not None and data.test_csv is not None:
        test_metadata = encoder.transform(data.test, data.test_csv, data.settings.id)
    valid_rows = data.train.iloc[data.rows_of(valid_ids)]
    return FoldJob(
        run=config.name,
        fold=fold,
        seed=seed,
        paths=paths,
        fingerprint=fingerprint,
        id_column=config.competition.id,
        task=data.task,
        metrics=data.metrics,
        recipe=make_recipe(config),
        spec=replace(spec, target_mean=mean, target_std=std),
        weights=None if weights is None else find_input(workspace.root, config.competition.name, weights),
        examples=examples,
        images=sources.train,
        valid_ids=valid_ids,
        valid_targets=data.targets_of(valid_ids),
        test=sources.predicted,
        metadata=encoder,
        valid_metadata=None if encoder is None else encoder.transform(valid_rows, data.train_csv, data.settings.id),
        test_metadata=test_metadata,
        auxiliary=auxiliary,
        cache=cache_folder(config, workspace),
        valid_images=sources.valid,
    )


def fit_encoder(config: Config, data: CompetitionData, train_ids: tuple[str, ...]) -> MetadataEncoder | None:
    """The encoder of the CSV's columns, fitted on training rows alone; None where no column is used."""
    settings = config.model.metadata
    if not (settings.numeric or settings.categorical):
        return None
    return fit_metadata(settings, data.train.iloc[data.rows_of(train_ids)], data.train_csv, data.settings.id)


def fit_auxiliary(
    config: Config, data: CompetitionData, train_ids: tuple[str, ...]
) -> tuple[tuple[AuxiliaryTask, ...], np.ndarray, np.ndarray]:
    """Auxiliary tasks with their targets (N, A) and weights (N, K) for all rows of the train CSV."""
    chosen = np.zeros(len(data.ids), dtype=bool)
    chosen[data.rows_of(train_ids)] = True
    for task in config.loss.auxiliary:
        if task.column in data.target_columns:
            raise BadInput("loss.auxiliary", f"'{task.column}' is the target itself", "name another column")
    return make_auxiliary(config.loss.auxiliary, data.train, data.train_csv, fit=chosen)


def fold_spec(
    config: Config, data: CompetitionData, encoder: MetadataEncoder | None, images: Images | None, rows: Ints
) -> ModelSpec:
    """The network of a fold; pixel statistics of a colour space of its own are measured on its training ``rows``."""
    shape = None if encoder is None else MetadataShape(encoder.n_numeric, encoder.widths)
    colours = InputColours.from_config(config.input)
    own = colours != InputColours("rgb", "none") and config.input.normalise == "fixed"
    stats = None
    if own and images is not None and (config.model.mean is None or config.model.std is None):
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_OF)).astype(int)]
        pixels = centre(images.read(np.sort(chosen)), config.input.size, colours) / np.float32(255)
        mean, std = pixels.mean(axis=(0, 1, 2), dtype=np.float64), pixels.std(axis=(0, 1, 2), dtype=np.float64)
        stats = tuple(map(float, mean)), tuple(float(max(value, 1 / 255)) for value in std)
    return make_spec(config.model, config.input, data.task, metadata=shape, pixel_stats=stats)


def _extended(
    config: Config,
    fold: int,
    examples: Examples,
    sources: Sources,
    valid_rows: Ints,
    encoder: MetadataEncoder | None,
) -> Examples:
    """Add external data sets, without the images that this fold is validated on."""
    for part, images in sources.external:
        keep = outside(images, sources.train, valid_rows, f"{config.name} fold {fold}: {part.csv.name}")
        if not len(keep):
            continue
        metadata = (
            None if encoder is None else encoder.transform(part.frame.iloc[keep], part.csv, config.competition.id)
        )
        ids = tuple(part.ids[place] for place in keep)
        examples = add_external(examples, images, ids, part.targets[keep], part.weight, metadata)
    return examples


def try_augmentation(config: Config) -> None:
    """Run the transforms of every phase once. Raises BadInput when one fails or does nothing on such images.

    Some fail on real pixels only, such as colour noise on grey images.
    """
    spec = ImageSpec.from_config(config.input)
    for stretch in make_plan(make_recipe(config)):
        if stretch.augment.on == "device":
            try_device_augmenter(stretch.augment, stretch.size, spec.size, spec.channels, crop=config.input.size)
        else:
            try_augmenter(stretch.augment, stretch.size, spec.size, spec.channels, 3 if config.loss.jsd else 1)


def make_recipe(config: Config) -> Recipe:
    """The sections that a training goes by."""
    return Recipe(
        config.input,
        config.augment,
        config.mix,
        config.model,
        config.loss,
        config.optim,
        config.schedule,
        config.train,
        config.balance,
        config.tta,
        config.teacher,
    )
