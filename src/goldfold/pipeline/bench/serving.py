"""Prediction against the networks' bare forward passes, and the image store against bare decoding."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch

from goldfold import files
from goldfold.bundle import load_bundle
from goldfold.cores import logical_cores
from goldfold.images import ImageSpec, open_images
from goldfold.images.decode import load
from goldfold.machine import Machine
from goldfold.models import Classifier
from goldfold.npy import NpyFile
from goldfold.pipeline.bench.plan import Plan, Subject, changed, link_files, renamed
from goldfold.pipeline.bench.rows import Measurement, rates, take_turns
from goldfold.pipeline.bench.training import settle
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.inference import predict_run
from goldfold.pipeline.settling import recalled
from goldfold.pipeline.stages import train_run
from goldfold.predict import bundle_views
from goldfold.tta import View

PROBED = 24
LEAST = 6
"""Batches to predict, at the least."""
CHUNK = 16
SLICES = 2
"""Turns of a sample of the store: not more, or else what a store costs once weighs as much as many images."""


def measure_cache(subject: Subject, plan: Plan) -> Measurement:
    """Building the store of decoded images, against decoding and resizing the same files on all cores and no more."""
    data = load_competition(subject.config.competition, subject.workspace.root)
    spec = ImageSpec.from_config(subject.config.input)
    probe = data.train_paths[:PROBED]
    decode_all(probe, spec)
    seconds = plan.seconds / SLICES
    count = max(math.ceil(seconds * len(probe) / decode_all(probe, spec)), logical_cores() * CHUNK)
    paths = link_files(data.train_paths, plan.scratch("cache-images"), count)
    ids = [path.stem for path in paths]

    def build() -> tuple[float, float]:
        store = plan.scratch("cache-store")
        begun = time.perf_counter()
        open_images(store, ids, paths, spec, what="bench cache")
        return float(count), time.perf_counter() - begun

    def pure() -> tuple[float, float]:
        return float(count), decode_all(paths, spec)

    samples = take_turns(plan.repeats, build, pure, SLICES)
    whole = median(sample["seconds"] for sample in samples) / SLICES
    hashing, writing = _seconds_beside(paths, spec, plan.scratch("cache-parts") / "images.npy")
    details = {"images": subject.what, "files": count, "size": spec.size, "cores": logical_cores(), **rates(samples)}
    note = (
        f"By themselves: {hashing / whole:.0%} of the time to hash the files, by which a store never goes stale, "
        f"{writing / whole:.0%} to write {count * math.prod(spec.shape) / 1e6:.0f} MB to the disk, most of it while others decode."
    )
    return Measurement(samples, details, (note,))


def _seconds_beside(paths: Sequence[Path], spec: ImageSpec, out: Path) -> tuple[float, float]:
    """Seconds in which all cores hash the files, and in which one writes an array of as many images."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(logical_cores()) as pool:
        list(pool.map(files.sha256_file, paths))
    hashed, image = time.perf_counter(), np.zeros((1, *spec.shape), dtype=np.uint8)
    with NpyFile(out, (len(paths), *spec.shape), np.uint8) as file:
        for row in range(len(paths)):
            file.write(row, image)
    written = time.perf_counter()
    out.unlink()
    return hashed - begun, written - hashed


def decode_all(paths: Sequence[Path], spec: ImageSpec) -> float:
    """Seconds in which all cores decode and resize the files, and keep nothing."""

    def some_of_them(start: int) -> None:
        for path in paths[start : start + CHUNK]:
            load(path, spec)

    with ThreadPoolExecutor(logical_cores()) as pool:
        begun = time.perf_counter()
        list(pool.map(some_of_them, range(0, len(paths), CHUNK)))
        return time.perf_counter() - begun


def measure_tta(members: Sequence[Subject], plan: Plan) -> Measurement:
    """`goldfold predict` of each member on new images, against its networks' forward passes and one decoding of all.

    Each member is trained for an epoch first; what it has learnt is of no matter here.
    """
    workspace = members[0].workspace
    workspace = type(workspace)(workspace.root, runs=str((plan.scratch("tta-runs")).resolve()))
    store = plan.folder.resolve() / "tta-store"
    names = []
    for number, member in enumerate(members):
        training = {"epochs": 1, "phases": [], "validate_every": 1, "seeds": []}
        config = changed(member.config, train=training, input={"cache": True, "cache_dir": str(store)})
        config = renamed(config, f"member{number}")
        train_run(config, workspace)
        names.append(str(config.name))
    config = members[0].config
    data = load_competition(config.competition, workspace.root)
    networks: list[tuple[Machine, Classifier, Sequence[View], torch.Tensor]] = []
    folders = []
    for name in names:
        run = workspace.run(name)
        machine = recalled(config.train, run.record).predicting  # each member as its own run chose
        for folder in sorted(path.parent for path in run.folder.glob("fold*/DONE")):
            folders.append(folder)
            bundle, model = load_bundle(folder)
            model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
            shape = (config.tta.batch_size, bundle.side, bundle.side, bundle.model.channels)
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=machine.device)
            networks.append((machine, model, bundle_views(bundle), model.prepare(pixels, machine.memory_format)))
    specs = list(dict.fromkeys(load_bundle(folder)[0].images for folder in folders))
    batch = config.tta.batch_size

    @torch.inference_mode()
    def forward(batches: int) -> float:
        settle(networks[0][0])
        begun = time.perf_counter()
        for machine, model, views, images in networks:
            for _ in range(batches * len(views)):
                with machine.autocast():
                    model(images)
        settle(networks[0][0])
        return time.perf_counter() - begun

    forward(1)
    # Enough images that reading the weights, once a call, does not decide.
    batches = max(math.ceil(plan.seconds / forward(1)), 1 if plan.quick else LEAST)
    count = batches * batch
    paths = link_files(data.train_paths, plan.scratch("tta-images"), count)
    csv = plan.folder / "tta.csv"
    pd.DataFrame({config.competition.id: [path.stem for path in paths]}).to_csv(csv, index=False)
    pattern = f"{paths[0].parent.resolve()}/{{{config.competition.id}}}{paths[0].suffix}"

    def whole() -> tuple[float, float]:
        shutil.rmtree(store, ignore_errors=True)
        settle(networks[0][0])
        begun = time.perf_counter()
        for name in names:
            predict_run(name, workspace, csv, pattern, plan.folder / f"{name}.parquet")
        return float(count), time.perf_counter() - begun

    def bare() -> tuple[float, float]:
        return float(count), sum(decode_all(paths, spec) for spec in specs) + forward(batches)

    whole()
    samples = take_turns(plan.repeats, whole, bare)
    details = {
        "images": members[0].what,
        "files": count,
        "networks": [
            f"{model.spec.backbone}, {model.spec.size} px, {len(views)} views, {machine.describe()['precision']}"
            for machine, model, views, _ in networks
        ],
        "batch_size": batch,
        "machine": networks[0][0].describe(),
        **rates(samples),
    }
    return Measurement(
        samples, details, ("The whole reads the weights, decodes into a new store and writes a table a member.",)
    )
