"""fastai's ``vision_learner`` with its own data loaders, as a program: an epoch for every line on standard input.

Needs fastai and timm alone. ``python rival_fastai.py SETTINGS`` with JSON settings; answers are lines of JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

NOT_INSTALLED = 3


def main() -> int:
    settings = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")
    try:
        import fastai
        import torch
        from fastai.vision import all as vision
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return NOT_INSTALLED

    class Clock(vision.Callback):  # type: ignore[misc,name-defined]
        """Times the training part of an epoch and leaves validation out."""

        def before_train(self) -> None:
            self.begun, self.images = time.perf_counter(), 0

        def after_batch(self) -> None:
            self.images += len(self.xb[0])

        def after_train(self) -> None:
            if settings["device"] == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.begun

        def before_validate(self) -> None:
            raise vision.CancelValidException

    folder = Path(settings["folder"])
    paths = vision.get_image_files(folder)
    # Its usual augmentation, made comparable: the same crop, flip, small rotation, light, and erased boxes.
    batch_tfms = [
        *vision.aug_transforms(
            max_rotate=15.0, max_zoom=1.1, max_lighting=0.2, max_warp=0.0, p_affine=0.5, p_lighting=0.5
        ),
        vision.RandomErasing(p=0.3),
    ]
    device = torch.device(settings["device"])
    loaders = vision.ImageDataLoaders.from_lists(
        folder,
        paths,
        [path.parent.name for path in paths],
        valid_pct=0.0,
        item_tfms=vision.RandomResizedCrop(settings["size"], min_scale=0.7, ratio=(0.8, 1.25)),
        batch_tfms=batch_tfms,
        bs=settings["batch_size"],
        num_workers=settings["workers"],
        device=device,
    )
    learner = vision.vision_learner(loaders, settings["backbone"], pretrained=False, normalize=True)
    learner.unfreeze()
    if settings["precision"] != "fp32" and settings["device"] == "cuda":
        learner = learner.to_bf16() if settings["precision"] == "bf16" else learner.to_fp16()
    clock = Clock()
    about = {"library": f"fastai {fastai.__version__}", "workers": settings["workers"]}
    answer(about | {"torch": torch.__version__, "threads": torch.get_num_threads()})
    for _ in sys.stdin:
        with learner.no_bar(), learner.no_logging():
            learner.fit(1, lr=settings["lr"], cbs=clock)
        answer({"images": clock.images, "seconds": clock.seconds})
    return 0


def answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"rival": value}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
