"""What a fold trains on: labelled rows, teachers' rows, their order and their batches."""

from goldfold.data.examples import (
    Examples,
    JoinedImages,
    LeakError,
    add_external,
    add_soft_labels,
    blend_soft_labels,
    labelled,
    rows_of,
)
from goldfold.data.loaders import (
    Batches,
    EpochOrder,
    FeatureBatches,
    PixelBatches,
    TrainBatch,
    plain_loader,
    train_loader,
)

__all__ = [
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
    "blend_soft_labels",
    "labelled",
    "plain_loader",
    "rows_of",
    "train_loader",
]
