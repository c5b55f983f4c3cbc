"""Section B: augmentation across images, and extra data."""

from __future__ import annotations

from goldfold.tricks.trick import Trick

MIX = "mixup, cutmix, both with a switch probability, alpha free (0.1, 0.2, 0.4), soft targets in and out"
CLEAN = "augmentation off in the first/last epochs (clean last epochs)"
EXTERNAL = "external datasets, train only, own weight"
BALANCE = (
    "class balance: loss weights (inverse, effective number), oversampling, undersampling, heavier augmentation of rare "
    "classes"
)
EPOCHS = (
    "phases must add up to train.epochs, so no fixed value fits every experiment; docs/tricks/phases.md has examples"
)

MIXING: tuple[Trick, ...] = (
    Trick("mixup", "B", "Mixup", MIX, ("mix.mixup", "mix.prob"), "mixup", "off", "Zhang et al. 2018",
          {"mix.mixup": 0.2}, {"mix.mixup": 0.0}),
    Trick("cutmix", "B", "CutMix", MIX, ("mix.cutmix", "mix.prob"), "cutmix", "off", "Yun et al. 2019",
          {"mix.cutmix": 1.0}, {"mix.cutmix": 0.0}),
    Trick("mixup_cutmix", "B", "Mixup or CutMix", MIX, ("mix.mixup", "mix.cutmix", "mix.prob", "mix.switch_prob"),
          "mixup_cutmix", "off", "Touvron et al. 2021 (DeiT)",
          {"mix.mixup": 0.8, "mix.cutmix": 1.0, "mix.switch_prob": 0.5}, {"mix.mixup": 0.0, "mix.cutmix": 0.0, "mix.switch_prob": 0.5}),
    Trick("clean_last_epochs", "B", "Clean last epochs", CLEAN, ("train.phases",), "clean_epochs", "off",
          "He et al. 2019 (Data Augmentation Revisited); Ge et al. 2021 (YOLOX)", note=EPOCHS),
    Trick("clean_first_epochs", "B", "Clean first epochs", CLEAN, ("train.phases",), "clean_epochs", "off",
          "practice; no controlled study known to us", note=EPOCHS),
    Trick("external", "B", "External data", EXTERNAL, ("competition.external",), "external", "off",
          "Ha, Liu and Liu 2020 (SIIM-ISIC, first place)", note="names a CSV of yours: competition.external=[{...}]"),
    Trick("class_weights", "B", "Class weights in the loss", BALANCE, ("balance.loss_weights",), "class_weights",
          "off (none)", "King and Zeng 2001", {"balance.loss_weights": "inverse"}, {"balance.loss_weights": "none"}),
    Trick("effective_number", "B", "Class weights by effective number", BALANCE,
          ("balance.loss_weights", "balance.beta"), "class_weights", "off (none)", "Cui et al. 2019",
          {"balance.loss_weights": "effective"}, {"balance.loss_weights": "none"}),
    Trick("oversample", "B", "Oversampling", BALANCE, ("balance.sampling",), "sampling", "off (none)",
          "Buda et al. 2018", {"balance.sampling": "oversample"}, {"balance.sampling": "none"}),
    Trick("undersample", "B", "Undersampling", BALANCE, ("balance.sampling",), "sampling", "off (none)",
          "Drummond and Holte 2003; Buda et al. 2018", {"balance.sampling": "undersample"}, {"balance.sampling": "none"}),
    Trick("rare_augmentation", "B", "Heavier augmentation of rare classes", BALANCE,
          ("balance.rare_preset", "balance.rare_below"), "rare_augmentation", "off",
          "Seif's design guide; no controlled study known to us",
          {"balance.rare_preset": "heavy"}, {"balance.rare_preset": None}),
)  # fmt: skip
