"""What Kaggle wants of dataset-metadata.json and kernel-metadata.json, checked here and not after an upload.

Kaggle's rules: https://github.com/Kaggle/kaggle-cli/blob/main/docs/datasets_metadata.md and kernels_metadata.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from goldfold import files
from goldfold.errors import BadInput, some

DATASET_FILE, KERNEL_FILE = "dataset-metadata.json", "kernel-metadata.json"
NO_OWNER = "your-kaggle-name"
"""Stands for the owner in an id until a name is known; nothing with it is uploaded."""

TITLE, SUBTITLE, SLUG = (6, 50), (20, 80), (3, 50)
PACK = "-pack"
"""How the slug of a pack's data set ends."""
NEW_SLUG = 6
"""The shortest slug that Kaggle's client makes a new data set of; older ones may be shorter."""

KERNEL_TITLE = 5
LICENCES = (
    "CC0-1.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "GPL-2.0", "ODbL-1.0", "DbCL-1.0",
    "copyright-authors", "other", "unknown", "CC-BY-4.0", "CC-BY-NC-4.0", "PDDL", "CC-BY-3.0", "CC-BY-3.0-IGO",
    "US-Government-Works", "CC-BY-NC-SA-3.0-IGO", "CDLA-Permissive-1.0", "CDLA-Sharing-1.0", "CC-BY-ND-4.0",
    "CC-BY-NC-ND-4.0", "ODC-BY-1.0", "LGPL-3.0", "AGPL-3.0", "FDL-1.3", "EU-ODP-Legal-Notice", "apache-2.0", "GPL-3.0",
)  # fmt: skip
LANGUAGES = ("python", "r", "rmarkdown")
KERNEL_TYPES = ("script", "notebook")
_SWITCHES = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
_SOURCES = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")


def slugify(text: str) -> str:
    """Text as Kaggle makes a web address of it: lower case, dashes between words of letters and digits."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def make_dataset(competition: str, source: str, kind: Literal["run", "ensemble"], owner: str | None) -> dict[str, Any]:
    """The metadata of a pack of a run or an ensemble; each text is of a length that Kaggle takes."""
    name = source if source.lower().startswith(competition.lower()) else f"{competition} {source}"
    # Never the competition's own slug: in Kaggle's older layout both lie in one folder.
    slug = f"{_fit(slugify(name), 1, SLUG[1] - len(PACK), '-').strip('-')}{PACK}"
    return {
        "title": _fit(name, *TITLE, " pack"),
        "subtitle": _fit(f"Weights and code for an offline kernel of {competition}", *SUBTITLE, " pack"),
        "description": f"The {kind} '{source}' with all that its offline kernel needs, exported by Goldfold. The weights may "
        "be used as the rules of the competition and the licences of their backbones allow.",
        "id": f"{owner or NO_OWNER}/{slug}",
        "licenses": [{"name": "other"}],
    }


def check_dataset(values: Any, where: object) -> None:
    """Raises BadInput for the first rule of Kaggle's that a dataset-metadata.json breaks."""
    if not isinstance(values, dict):
        raise BadInput(where, "is not a JSON object")
    _length(values, "title", *TITLE, where)
    if "subtitle" in values:
        _length(values, "subtitle", *SUBTITLE, where)
    _, slug = _id(values, where)
    if not SLUG[0] <= len(slug) <= SLUG[1]:
        raise BadInput(
            where, f"the slug '{slug}' of 'id' has {len(slug)} characters", f"{SLUG[0]} to {SLUG[1]} are allowed"
        )
    licences = values.get("licenses")
    if not isinstance(licences, list) or len(licences) != 1 or not isinstance(licences[0], dict):
        raise BadInput(where, "'licenses' must hold exactly one licence", 'such as [{"name": "CC0-1.0"}]')
    if licences[0].get("name") not in LICENCES:
        raise BadInput(
            where, f"Kaggle knows no licence '{licences[0].get('name')}'", f"use one of {some(LICENCES, 30)}"
        )


def check_kernel(values: Any, where: object) -> None:
    """Raises BadInput for the first rule that a kernel-metadata.json breaks.

    ``enable_internet`` must be written: Kaggle's client takes a missing one for true, and a code competition then refuses
    the kernel.
    """
    if not isinstance(values, dict):
        raise BadInput(where, "is not a JSON object")
    _length(values, "title", KERNEL_TITLE, SLUG[1], where)
    _, slug = _id(values, where)
    if slugify(values["title"]) != slug:
        raise BadInput(
            where,
            f"the title '{values['title']}' gives the address '{slugify(values['title'])}', and 'id' ends in '{slug}'",
            "make them the same",
        )
    if not values.get("code_file") or not isinstance(values["code_file"], str):
        raise BadInput(where, "'code_file' is missing")
    for key, known in (("language", LANGUAGES), ("kernel_type", KERNEL_TYPES)):
        if values.get(key) not in known:
            raise BadInput(where, f"'{key}' is '{values.get(key)}'", f"use one of {some(known)}")
    for key in _SWITCHES:
        if key in values and str(values[key]).lower() not in ("true", "false"):
            raise BadInput(where, f"'{key}' is '{values[key]}'", "write true or false")
    if "enable_internet" not in values:
        raise BadInput(where, "'enable_internet' is missing, which Kaggle takes for true", "write false")
    for key in _SOURCES:
        sources = values.get(key, [])
        if not isinstance(sources, list) or not all(isinstance(item, str) and item for item in sources):
            raise BadInput(where, f"'{key}' must be a list of names")
    for source in values.get("dataset_sources", []):
        if source.count("/") not in (1, 2):
            raise BadInput(where, f"the data set '{source}' is not of the form owner/slug")


def read_dataset(folder: Path) -> dict[str, Any]:
    """The checked dataset-metadata.json of a folder. Raises BadInput."""
    values = files.read_json(folder / DATASET_FILE)
    check_dataset(values, folder / DATASET_FILE)
    return dict(values)


def _id(values: Mapping[str, Any], where: object) -> tuple[str, str]:
    text = values.get("id")
    found = re.fullmatch(r"([A-Za-z0-9_-]+)/([a-z0-9]+(?:-[a-z0-9]+)*)", text) if isinstance(text, str) else None
    if found is None:
        raise BadInput(where, f"'id' is '{text}'", "write owner/slug, the slug in small letters, digits and dashes")
    return found[1], found[2]


def _length(values: Mapping[str, Any], key: str, low: int, high: int, where: object) -> None:
    text = values.get(key)
    if not isinstance(text, str) or not low <= len(text) <= high:
        has = f"has {len(text)} characters" if isinstance(text, str) else "is missing"
        raise BadInput(where, f"'{key}' {has}", f"{low} to {high} are allowed")


def _fit(text: str, low: int, high: int, more: str) -> str:
    text = text[:high].rstrip(" -")
    while len(text) < low:
        text += more
    return text
