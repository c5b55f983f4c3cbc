"""A backbone with a head for the task, built from a description that a bundle keeps."""

from goldfold.models.build import build_model, check_weights_file, try_sizes
from goldfold.models.classifier import Classifier, grades
from goldfold.models.freeze import set_frozen, trainable_names
from goldfold.models.spec import HeadSpec, MetadataShape, MetadataSpec, ModelSpec, backbone_defaults, make_spec

__all__ = [
    "Classifier",
    "HeadSpec",
    "MetadataShape",
    "MetadataSpec",
    "ModelSpec",
    "backbone_defaults",
    "build_model",
    "check_weights_file",
    "grades",
    "make_spec",
    "set_frozen",
    "trainable_names",
    "try_sizes",
]
