"""Prediction against the networks' bare forward passes, and the image store against bare decoding."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from goldfold.bundle import load_bundle
from goldfold.images import ImageSpec, open_images
from goldfold.images.decode import load
from goldfold.machine import find_machine
from goldfold.pipeline.bench.host import cores
from goldfold.pipeline.bench.plan import Plan, Subject, changed, link_files, renamed
from goldfold.pipeline.bench.rows import Measurement, rates, take_turns
from goldfold.pipeline.bench.training import settle
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.inference import predict_run
from goldfold.pipeline.stages import train_run
from goldfold.predict import bundle_views

PROBED = 24
CHUNK = 16


def measure_cache(subject: Subject, plan: Plan) -> Measurement:
    """Building the store of decoded images, against decoding and resizing the same files on all cores and no more."""
    data = load_competition(subject.config.competition, subject.workspace.root)
    spec = ImageSpec.from_config(subject.config.input)
    probe = data.train_paths[:PROBED]
    decode_all(probe, spec)
    count = max(math.ceil(plan.seconds * len(probe) / decode_all(probe, spec)), cores() * CHUNK)
    paths = link_files(data.train_paths, plan.scratch("cache-images"), count)
    ids = [path.stem for path in paths]

    def build() -> tuple[float, float]:
        store = plan.scratch("cache-store")
        begun = time.perf_counter()
        open_images(store, ids, paths, spec, what="bench cache")
        return float(count), time.perf_counter() - begun

    def pure() -> tuple[float, float]:
        return float(count), decode_all(paths, spec)

    samples = take_turns(plan.repeats, build, pure)
    details = {"images": subject.what, "files": count, "size": spec.size, "cores": cores(), **rates(samples)}
    return Measurement(samples, details)


def decode_all(paths: Sequence[Path], spec: ImageSpec) -> float:
    """Seconds in which all cores decode and resize the files, and keep nothing."""

    def some_of_them(start: int) -> None:
        for path in paths[start : start + CHUNK]:
            load(path, spec)

    with ThreadPoolExecutor(cores()) as pool:
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
    folders = [path.parent for name in names for path in sorted(workspace.run(name).folder.glob("fold*/DONE"))]
    machine = find_machine(config.train)
    networks = []
    for folder in folders:
        bundle, model = load_bundle(folder)
        model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
        size = config.tta.batch_size
        shape = (size, bundle.side, bundle.side, bundle.model.channels)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=machine.device)
        networks.append((model, bundle_views(bundle), model.prepare(pixels, machine.memory_format)))
    specs = list(dict.fromkeys(load_bundle(folder)[0].images for folder in folders))
    batch = config.tta.batch_size

    @torch.inference_mode()
    def forward(batches: int) -> float:
        settle(machine)
        begun = time.perf_counter()
        for model, views, images in networks:
            for _ in range(batches * len(views)):
                with machine.autocast():
                    model(images)
        settle(machine)
        return time.perf_counter() - begun

    forward(1)
    batches = max(math.ceil(plan.seconds / forward(1)), 1)
    count = batches * batch
    paths = link_files(data.train_paths, plan.scratch("tta-images"), count)
    csv = plan.folder / "tta.csv"
    pd.DataFrame({config.competition.id: [path.stem for path in paths]}).to_csv(csv, index=False)
    pattern = f"{paths[0].parent.resolve()}/{{{config.competition.id}}}{paths[0].suffix}"

    def whole() -> tuple[float, float]:
        shutil.rmtree(store, ignore_errors=True)
        settle(machine)
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
            f"{model.spec.backbone}, {model.spec.size} px, {len(views)} views" for model, views, _ in networks
        ],
        "batch_size": batch,
        "machine": machine.describe(),
        **rates(samples),
    }
    return Measurement(
        samples, details, ("The whole reads the weights, decodes into a new store and writes a table a member.",)
    )
