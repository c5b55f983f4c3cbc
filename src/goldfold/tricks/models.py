"""Section C: models."""

from __future__ import annotations

from goldfold.tricks.mixing import EPOCHS
from goldfold.tricks.trick import Trick

BACKBONE = (
    "any timm backbone; families the sources name: EfficientNet v1/v2, SE-ResNeXt, Swin, BEiT, ViT, ResNet, Inception "
    "v3/v4/ResNet-v2, VGG, MobileNet v1–v4; AlexNet and ShuffleNet from torchvision"
)
TWEAKS = "ResNet-B, C, D tweaks"
HEAD = "extra hidden layers in the head; multi-sample dropout; GeM, average, max, concat pooling; ArcFace head"
DROP = "dropout, drop-path"
ACTIVATION = "activation swap: ReLU, LeakyReLU, PReLU, ELU, SiLU, GELU"
DILATION = "dilated convolution"
KERNELS = "kernel size of the stem; 1×1 reduction before the head"
INIT = "zero-γ; Kaiming initialisation of new layers"
METADATA = "metadata branch: numeric and categorical CSV columns joined before the head"
AUXILIARY = "auxiliary targets: extra label columns with their own weight, dropped at inference"
PRUNING = "pruning: magnitude masks, with fine-tuning after"
WEIGHTS = "pretrained weights by file (domain-matched, Places365-like), by hub, or none; never a hub when offline"
LAYERS = "which layers train: head, last k stages, all; gradual unfreezing by epoch; frozen batch-norm stage"

POOLING = "null: the backbone's own, mostly avg"
NET = "another network: set the key yourself, as in model.backbone=resnet50d"


def _activation(name: str, source: str) -> Trick:
    return Trick(
        name=f"{name}_activation",
        section="C",
        title=f"Activations swapped for {name}",
        row=ACTIVATION,
        keys=("model.activation",),
        card="activation",
        default="off (null)",
        source=source,
        on={"model.activation": name},
        off={"model.activation": None},
    )


MODELS: tuple[Trick, ...] = (
    Trick("backbone", "C", "Backbone", BACKBONE, ("model.backbone",), "backbones", "tf_efficientnet_b0",
          "Wightman 2019 (timm); Tan and Le 2019 (EfficientNet)", note=NET),
    Trick("resnet_b", "C", "ResNet-B", TWEAKS, ("model.backbone",), "resnet_tweaks", "off",
          "Gross and Wilber 2016; He et al. 2019",
          {"model.backbone": "resnet50"}, {"model.backbone": "tf_efficientnet_b0"}),
    Trick("resnet_c", "C", "ResNet-C", TWEAKS, ("model.backbone",), "resnet_tweaks", "off",
          "Szegedy et al. 2016 (stem); He et al. 2019",
          {"model.backbone": "resnet50c"}, {"model.backbone": "resnet50"}),
    Trick("resnet_d", "C", "ResNet-D", TWEAKS, ("model.backbone",), "resnet_tweaks", "off", "He et al. 2019",
          {"model.backbone": "resnet50d"}, {"model.backbone": "resnet50"}),
    Trick("hidden_head", "C", "Hidden layers in the head", HEAD, ("model.head.hidden", "model.head.activation"),
          "hidden_head", "off ([])", "Howard and Gugger 2020 (fastai's head)",
          {"model.head.hidden": [512]}, {"model.head.hidden": []}),
    Trick("multi_sample_dropout", "C", "Multi-sample dropout", HEAD, ("model.head.dropouts", "model.drop_rate"),
          "multi_sample_dropout", "off (1)", "Inoue 2019",
          {"model.head.dropouts": 5, "model.drop_rate": 0.5}, {"model.head.dropouts": 1, "model.drop_rate": 0.0}),
    Trick("gem", "C", "GeM pooling", HEAD, ("model.pool",), "pooling", POOLING, "Radenović et al. 2019",
          {"model.pool": "gem"}, {"model.pool": None}),
    Trick("average_pool", "C", "Average pooling", HEAD, ("model.pool",), "pooling", POOLING, "Lin et al. 2014",
          {"model.pool": "avg"}, {"model.pool": None}),
    Trick("max_pool", "C", "Max pooling", HEAD, ("model.pool",), "pooling", POOLING, "Tolias et al. 2016",
          {"model.pool": "max"}, {"model.pool": None}),
    Trick("concat_pool", "C", "Average and max side by side", HEAD, ("model.pool",), "pooling", POOLING,
          "Howard and Gugger 2020 (fastai)", {"model.pool": "concat"}, {"model.pool": None}),
    Trick("arcface", "C", "ArcFace head", HEAD, ("model.head.kind", "model.head.scale", "loss.margin"), "arcface",
          "off (linear)", "Deng et al. 2019", {"model.head.kind": "arcface", "loss.margin": 0.3},
          {"model.head.kind": "linear", "loss.margin": 0.0}),
    Trick("dropout", "C", "Dropout", DROP, ("model.drop_rate",), "dropout", "off", "Srivastava et al. 2014",
          {"model.drop_rate": 0.3}, {"model.drop_rate": 0.0}),
    Trick("drop_path", "C", "Stochastic depth", DROP, ("model.drop_path_rate",), "drop_path", "off", "Huang et al. 2016",
          {"model.drop_path_rate": 0.1}, {"model.drop_path_rate": 0.0}),
    _activation("relu", "Nair and Hinton 2010"),
    _activation("leaky_relu", "Maas et al. 2013"),
    _activation("prelu", "He et al. 2015"),
    _activation("elu", "Clevert et al. 2016"),
    _activation("silu", "Elfwing et al. 2018; Ramachandran et al. 2017"),
    _activation("gelu", "Hendrycks and Gimpel 2016"),
    Trick("dilation", "C", "Dilated last stages", DILATION, ("model.output_stride",), "dilation", "off (null)",
          "Yu and Koltun 2016; Yu et al. 2017", {"model.output_stride": 16}, {"model.output_stride": None}),
    Trick("stem_kernel", "C", "Kernel of the stem", KERNELS, ("model.stem_kernel",), "stem_kernel", "off (null)",
          "Seif's design guide; no controlled study known to us", {"model.stem_kernel": 5}, {"model.stem_kernel": None}),
    Trick("reduction", "C", "1×1 reduction before pooling", KERNELS, ("model.reduce", "model.pool"), "reduction", "off (null)",
          "Lin et al. 2014", {"model.reduce": 256, "model.pool": "avg"}, {"model.reduce": None}),
    Trick("zero_gamma", "C", "Zero-γ", INIT, ("model.zero_init_last",), "zero_gamma", "off", "Goyal et al. 2017",
          {"model.zero_init_last": True}, {"model.zero_init_last": False}),
    Trick("kaiming", "C", "Kaiming initialisation of new layers", INIT, ("model.head.init",), "kaiming",
          "off (PyTorch's default)", "He et al. 2015", {"model.head.init": "kaiming"}, {"model.head.init": "default"}),
    Trick("metadata", "C", "Metadata branch", METADATA,
          ("model.metadata.numeric", "model.metadata.categorical", "model.metadata.embedding", "model.metadata.hidden",
           "model.metadata.drop_rate"), "metadata", "off", "Ha, Liu and Liu 2020; Guo and Berkhahn 2016",
          note="names columns of your CSV: model.metadata.numeric=[...] and model.metadata.categorical=[...]"),
    Trick("auxiliary", "C", "Auxiliary targets", AUXILIARY, ("loss.auxiliary",), "auxiliary", "off", "Caruana 1997",
          note="names a column of your CSV: loss.auxiliary=[{column: ...}]"),
    Trick("prune", "C", "Magnitude pruning", PRUNING, ("train.prune.amount", "train.prune.after"), "pruning", "off",
          "Han et al. 2015", {"train.prune.amount": 0.5}, {"train.prune.amount": 0.0}),
    Trick("pretrained", "C", "Pretrained weights", WEIGHTS, ("model.pretrained", "model.weights"), "pretrained", "on",
          "Yosinski et al. 2014; Kornblith et al. 2019", {"model.pretrained": True}, {"model.pretrained": False}),
    Trick("freeze_stages", "C", "Frozen first stages", LAYERS, ("model.freeze.stages",), "freeze_stages", "off",
          "Yosinski et al. 2014", {"model.freeze.stages": 2}, {"model.freeze.stages": 0}),
    Trick("head_only", "C", "Only the head trains", LAYERS, ("model.freeze.stages",), "freeze_stages", "off",
          "Donahue et al. 2014 (DeCAF)", {"model.freeze.stages": "all"}, {"model.freeze.stages": 0}),
    Trick("gradual_unfreezing", "C", "Gradual unfreezing", LAYERS, ("train.phases",), "phases", "off",
          "Howard and Ruder 2018", note=EPOCHS),
    Trick("freeze_batch_norm", "C", "Frozen batch-norm", LAYERS, ("model.freeze.batch_norm",), "freeze_batch_norm",
          "off", "practice of detection since He et al. 2016",
          {"model.freeze.batch_norm": True}, {"model.freeze.batch_norm": False}),
)  # fmt: skip
