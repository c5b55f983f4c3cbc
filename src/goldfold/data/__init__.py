"""What a fold trains on: labelled rows, teachers' rows, their order and their batches."""

from goldfold.data.draw import counted_rows, draw_rows
from goldfold.data.examples import (
    EXTERNAL,
    LABELLED,
    PSEUDO,
    Examples,
    JoinedImages,
    LeakError,
    add_external,
    add_soft_labels,
    add_teacher,
    labelled,
    parts_of,
    refuse_leak,
)
from goldfold.data.loaders import (
    EpochOrder,
    FeatureBatches,
    PixelBatches,
    TrainBatch,
    train_loader,
)
from goldfold.data.prefetch import prefetched
from goldfold.images.batches import Batches, plain_loader, rows_of

__all__ = [
    "EXTERNAL",
    "LABELLED",
    "PSEUDO",
    "Batches",
    "EpochOrder",
    "Examples",
    "FeatureBatches",
    "JoinedImages",
    "LeakError",
    "PixelBatches",
    "TrainBatch",
    "add_external",
    "add_soft_labels",
    "add_teacher",
    "counted_rows",
    "draw_rows",
    "labelled",
    "parts_of",
    "plain_loader",
    "prefetched",
    "refuse_leak",
    "rows_of",
    "train_loader",
]
