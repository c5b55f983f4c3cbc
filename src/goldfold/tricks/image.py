"""Section A: augmentation on one image."""

from __future__ import annotations

from goldfold.tricks.trick import ADD, Trick, transform

ADDED = ("augment.add", "augment.train")
SKEW = "colour skew: H, S, V each times a random factor, clipped"
NORM = "per-image RGB norm"
GREY = "black and white"
GRAHAM = "Ben Graham: subtract the local mean, and the article's HSV + blur form"
SPACES = "colour spaces HLS, HSV, LUV, XYZ, YCrCb, Lab, YUV, and RGBA (4 channels)"
CROPS = "center crop, random crop, random resized crop"
FLIPS = "horizontal, vertical flip, transpose, D4"
JITTER = "colour jitter, brightness/contrast, multiplicative noise"
GEOMETRY = "affine, perspective, rotation"
PIXELS = "invert, posterize, solarize, autocontrast, equalize"
HOLES = "cutout, random erasing"
POLICIES = "AutoAugment, RandAugment, TrivialAugment"
JSD = "AugMix with the JSD consistency loss"
PRESET = "presets that say which are label-safe"

KRIZHEVSKY = "Krizhevsky et al. 2012"
HOWARD = "Howard 2013"
OPERATIONS = "an operation of Cubuk et al. 2019 (AutoAugment)"
OWN = "Goldfold's own; no controlled study known to us"


def _preset(name: str, default: str = "off") -> Trick:
    return Trick(
        name=f"{name}_preset",
        section="A",
        title=f"Preset {name}",
        row=PRESET,
        keys=("augment.preset",),
        card="presets",
        default=default,
        source=OWN,
        on={"augment.preset": name},
        off={"augment.preset": "none"},
    )


def _colour_space(name: str, title: str) -> Trick:
    return Trick(
        name=f"{name}_input",
        section="A",
        title=f"{title} as the network's input",
        row=SPACES,
        keys=("input.colour", "model.mean", "model.std"),
        card="colour_space",
        default="off (rgb)",
        source="Gowda and Yuan 2018 (ColorNet)",
        on={"input.colour": name},
        off={"input.colour": "rgb"},
    )


IMAGE: tuple[Trick, ...] = (
    Trick("colour_skew", "A", "Colour skew", SKEW, ADDED, "colour_skew", "off",
          "Seif's guide; multiplying S and V: Dosovitskiy et al. 2014", transform("ColorSkew", p=0.5), ADD),
    Trick("image_norm", "A", "Normalise each image", NORM, ("input.normalise",), "normalise", "off (fixed)",
          "TensorFlow's per_image_standardization (Abadi et al. 2016)",
          {"input.normalise": "image"}, {"input.normalise": "fixed"}),
    Trick("image_channel_norm", "A", "Normalise each image's channels", NORM,
          ("input.normalise",), "normalise", "off (fixed)",
          "albumentations' image_per_channel (Buslaev et al. 2020)",
          {"input.normalise": "image_per_channel"}, {"input.normalise": "fixed"}),
    Trick("black_and_white", "A", "Grey now and then", GREY, ADDED, "black_and_white", "off",
          "Chen et al. 2020 (SimCLR, p = 0.2)", transform("ToGray", p=0.2), ADD),
    Trick("local_mean", "A", "Ben Graham's local mean as the input", GRAHAM, ("input.local_mean",), "local_mean",
          "off (none)", "Graham 2015 (Diabetic Retinopathy, first place)",
          {"input.local_mean": "subtract"}, {"input.local_mean": "none"}),
    Trick("hsv_blur", "A", "HSV and blur as the input", GRAHAM, ("input.local_mean",), "local_mean", "off (none)",
          "Seif's guide; no controlled study known to us",
          {"input.local_mean": "hsv_blur"}, {"input.local_mean": "none"}),
    Trick("local_mean_augment", "A", "Local mean now and then", GRAHAM, ADDED, "local_mean", "off",
          "Graham 2015, as an augmentation", transform("LocalMean", mode="subtract", p=0.3), ADD),
    *(_colour_space(title.lower(), title) for title in ("HLS", "HSV", "LUV", "XYZ", "YCrCb", "Lab", "YUV")),
    Trick("colour_space_augment", "A", "Another colour space now and then", SPACES, ADDED, "colour_space", "off",
          "Seif's guide; no controlled study known to us", transform("ColorSpace", space="hsv", p=0.2), ADD),
    Trick("rgba", "A", "Four channels", SPACES, ("input.channels",), "rgba", "off (3)",
          "Wightman 2019 (timm's in_chans)", note="the images must have a fourth channel: input.channels=4"),
    Trick("center_crop", "A", "Centre crop", CROPS, ("input.resize", "augment.train"), "crops", "off (squash)",
          KRIZHEVSKY, {"input.resize": "crop"}, {"input.resize": "squash"}),
    Trick("random_crop", "A", "Random crop", CROPS, ("input.cache_size", "augment.train"), "crops",
          "off; presets flips, light and medical crop where stored images are larger", KRIZHEVSKY,
          note="needs stored images larger than input.size, such as input.cache_size=256 for 224"),
    Trick("random_resized_crop", "A", "Random resized crop", CROPS, ADDED, "crops",
          "on in presets medium, heavy and satellite", "Szegedy et al. 2015",
          transform("RandomResizedCrop", scale=[0.5, 1.0], area_for_downscale="image", p=1.0), ADD),
    Trick("horizontal_flip", "A", "Horizontal flip", FLIPS, ADDED, "flips", "on in every preset but none", KRIZHEVSKY,
          transform("HorizontalFlip", p=0.5), ADD),
    Trick("vertical_flip", "A", "Vertical flip", FLIPS, ADDED, "flips", "on in presets flips, medical and satellite",
          "Dieleman et al. 2015", transform("VerticalFlip", p=0.5), ADD),
    Trick("transpose", "A", "Transpose", FLIPS, ADDED, "flips", "on in presets medical and satellite",
          "Dieleman et al. 2015", transform("Transpose", p=0.5), ADD),
    Trick("d4", "A", "All eight flips and quarter turns", FLIPS, ADDED, "flips",
          "on in presets medical and satellite", "Dieleman et al. 2015", transform("D4", p=1.0), ADD),
    Trick("colour_jitter", "A", "Colour jitter", JITTER, ADDED, "colour_jitter", "off", HOWARD,
          transform("ColorJitter", brightness=[0.8, 1.2], contrast=[0.8, 1.2], saturation=[0.8, 1.2],
                    hue=[-0.05, 0.05], p=0.5), ADD),
    Trick("brightness_contrast", "A", "Brightness and contrast", JITTER, ADDED, "colour_jitter",
          "on in presets light to satellite", HOWARD,
          transform("RandomBrightnessContrast", brightness_limit=0.2, contrast_limit=0.2, p=0.5), ADD),
    Trick("multiplicative_noise", "A", "Multiplicative noise", JITTER, ADDED, "multiplicative_noise", "off",
          "speckle of coherent imaging (Goodman 1976)",
          transform("MultiplicativeNoise", multiplier=[0.9, 1.1], elementwise=True, p=0.5), ADD),
    Trick("affine", "A", "Shift, scale, rotation, shear", GEOMETRY, ADDED, "affine",
          "on in presets light, medium, heavy and medical", "Simard et al. 2003",
          transform("Affine", rotate=[-15, 15], scale=[0.9, 1.1], border_mode=4, p=0.5), ADD),
    Trick("rotation", "A", "Rotation", GEOMETRY, ADDED, "affine", "on in presets light, medium, heavy and medical",
          "Simard et al. 2003", transform("Rotate", limit=[-30, 30], border_mode=4, p=0.5), ADD),
    Trick("perspective", "A", "Perspective", GEOMETRY, ADDED, "perspective", "off", "Buslaev et al. 2020",
          transform("Perspective", scale=[0.02, 0.08], p=0.5), ADD),
    Trick("invert", "A", "Invert", PIXELS, ADDED, "pixel_operations", "off", OPERATIONS,
          transform("InvertImg", p=0.1), ADD),
    Trick("posterize", "A", "Posterize", PIXELS, ADDED, "pixel_operations", "off", OPERATIONS,
          transform("Posterize", num_bits=[4, 6], p=0.2), ADD),
    Trick("solarize", "A", "Solarize", PIXELS, ADDED, "pixel_operations", "off", OPERATIONS,
          transform("Solarize", threshold_range=[0.5, 1.0], p=0.2), ADD),
    Trick("autocontrast", "A", "Autocontrast", PIXELS, ADDED, "pixel_operations", "off", OPERATIONS,
          transform("AutoContrast", p=0.3), ADD),
    Trick("equalize", "A", "Equalize", PIXELS, ADDED, "pixel_operations", "off", OPERATIONS,
          transform("Equalize", p=0.3), ADD),
    Trick("cutout", "A", "Cutout", HOLES, ADDED, "cutout", "on in presets medium and heavy",
          "DeVries and Taylor 2017",
          transform("CoarseDropout", num_holes_range=[1, 1], hole_height_range=[0.25, 0.375],
                    hole_width_range=[0.25, 0.375], p=0.5), ADD),
    Trick("random_erasing", "A", "Random erasing", HOLES,
          ("augment.erase.prob", "augment.erase.mode", "augment.erase.area", "augment.erase.count"), "random_erasing",
          "off", "Zhong et al. 2020", {"augment.erase.prob": 0.25}, {"augment.erase.prob": 0.0}),
    Trick("autoaugment", "A", "AutoAugment", POLICIES, ADDED, "autoaugment", "off", "Cubuk et al. 2019",
          transform("AutoAugment", policy="original"), ADD),
    Trick("randaugment", "A", "RandAugment", POLICIES, ADDED, "randaugment", "off", "Cubuk et al. 2020",
          transform("RandAugment", m=9, n=2), ADD),
    Trick("trivialaugment", "A", "TrivialAugment", POLICIES, ADDED, "trivialaugment", "off", "Müller and Hutter 2021",
          transform("TrivialAugment"), ADD),
    Trick("augmix", "A", "AugMix", JSD, ADDED, "augmix", "off", "Hendrycks et al. 2020", transform("AugMix", severity=3),
          ADD),
    Trick("augmix_jsd", "A", "AugMix with its consistency loss", JSD, ("loss.jsd", *ADDED), "augmix", "off",
          "Hendrycks et al. 2020", {**transform("AugMix", severity=3), "loss.jsd": 12.0}, {**ADD, "loss.jsd": 0.0}),
    _preset("flips"),
    _preset("light"),
    _preset("medium", "on"),
    _preset("heavy"),
    _preset("medical"),
    _preset("satellite"),
)  # fmt: skip
