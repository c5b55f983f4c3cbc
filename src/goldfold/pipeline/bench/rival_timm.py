"""timm's own loader and its train script's step, as a program: an epoch for every line on standard input.

Needs timm and torch alone. ``python rival_timm.py SETTINGS`` with JSON settings; answers are lines of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from typing import Any


def main() -> int:
    settings = json.loads(sys.argv[1])
    import timm
    import torch
    from timm.data import create_dataset, create_loader, resolve_model_data_config
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    device = torch.device(settings["device"])
    dataset: Any = create_dataset("", settings["folder"], split="", is_training=True)
    classes = len(dataset.reader.class_to_idx)
    model = timm.create_model(settings["backbone"], pretrained=False, num_classes=classes).to(device)
    if settings["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    data = resolve_model_data_config(model)
    loader = create_loader(
        dataset,
        input_size=(3, settings["size"], settings["size"]),
        batch_size=settings["batch_size"],
        is_training=True,
        scale=(0.7, 1.0),
        ratio=(0.8, 1.25),
        hflip=0.5,
        color_jitter=(0.2, 0.2, 0.0),
        re_prob=0.3,
        re_mode="const",
        interpolation="bilinear",
        mean=data["mean"],
        std=data["std"],
        num_workers=settings["workers"],
        pin_memory=device.type == "cuda",
        use_prefetcher=device.type == "cuda",
        device=device,
        persistent_workers=settings["workers"] > 0,
    )
    optimizer = create_optimizer_v2(model, "adamw", lr=settings["lr"], weight_decay=settings["weight_decay"])
    loss_of = torch.nn.CrossEntropyLoss()
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(settings["precision"])
    scaler = torch.amp.GradScaler(device.type, enabled=settings["precision"] == "fp16")

    def epoch() -> dict[str, float]:
        model.train()
        losses, seen, begun = AverageMeter(), 0, time.perf_counter()
        for number, (images, labels) in enumerate(loader):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if settings["channels_last"]:
                images = images.contiguous(memory_format=torch.channels_last)
            with nullcontext() if kind is None else torch.autocast(device.type, dtype=kind):
                loss = loss_of(model(images), labels)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            seen += len(images)
            if number % 50 == 0:  # its log interval
                losses.update(loss.item(), len(images))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return {"images": seen, "seconds": time.perf_counter() - begun}

    answer({"library": f"timm {timm.__version__}", "workers": settings["workers"], "threads": torch.get_num_threads()})
    for _ in sys.stdin:
        answer(epoch())
    return 0


def answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"rival": value}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
