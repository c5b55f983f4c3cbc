"""Metadata keep Kaggle's rules, whatever runs and competitions are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfold.errors import BadInput
from goldfold.kaggle.metadata import check_dataset, check_kernel, make_dataset, read_dataset, slugify

DATASET = {
    "title": "Six up",
    "subtitle": "x" * 20,
    "id": "someone/abc",
    "licenses": [{"name": "CC0-1.0"}],
}
KERNEL = {
    "id": "someone/my-kernel-2",
    "title": "My Kernel (2)",
    "code_file": "kernel.py",
    "language": "python",
    "kernel_type": "script",
    "enable_internet": False,
    "enable_gpu": "true",
    "dataset_sources": ["someone/pack", "someone/pack/3"],
    "competition_sources": ["elpv"],
}


@given(
    st.text("abcXYZ0189._-", min_size=1, max_size=90).filter(lambda text: text[0].isalnum()),
    st.text("abcXYZ0189._-", min_size=1, max_size=90).filter(lambda text: text[0].isalnum()),
)
def test_every_name_gives_metadata_that_kaggle_takes(competition: str, source: str) -> None:
    values = make_dataset(competition, source, "ensemble", None)
    check_dataset(values, "here")
    slug = values["id"].split("/")[1]
    assert len(slug) >= 6  # what Kaggle's client wants of a new data set
    assert slug != slugify(competition)  # in the older layout of inputs both would lie in one folder


def test_names_that_can_be_kept_are() -> None:
    values = make_dataset("leaf-disease", "blend", "ensemble", "someone")
    assert (values["title"], values["id"]) == ("leaf-disease blend", "someone/leaf-disease-blend-pack")
    assert make_dataset("elpv", "elpv-lite0", "run", "me")["title"] == "elpv-lite0"


@pytest.mark.parametrize(
    ("text", "slug"),
    [("My Kernel (2)", "my-kernel-2"), ("  Blätter & Äste ", "blatter-aste"), ("a__b..c", "a-b-c"), ("日本", "")],
)
def test_slugs(text: str, slug: str) -> None:
    assert slugify(text) == slug


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(title="x" * 5), "'title' has 5 characters; 6 to 50"),
        (lambda values: values.update(title="x" * 51), "'title' has 51 characters"),
        (lambda values: values.pop("title"), "'title' is missing"),
        (lambda values: values.update(subtitle="x" * 19), "'subtitle' has 19 characters; 20 to 80"),
        (lambda values: values.update(subtitle="x" * 81), "'subtitle' has 81 characters"),
        (lambda values: values.update(id="someone/ab"), "slug 'ab' of 'id' has 2 characters"),
        (lambda values: values.update(id="someone/" + "x" * 51), "has 51 characters"),
        (lambda values: values.update(id="abc"), "write owner/slug"),
        (lambda values: values.update(id="someone/Big Name"), "write owner/slug"),
        (lambda values: values.pop("id"), "write owner/slug"),
        (lambda values: values.update(licenses=[]), "exactly one licence"),
        (lambda values: values.update(licenses=DATASET["licenses"] * 2), "exactly one licence"),
        (lambda values: values.update(licenses="CC0-1.0"), "exactly one licence"),
        (lambda values: values.update(licenses=[{"name": "MIT"}]), "no licence 'MIT'"),
    ],
)
def test_rules_of_a_dataset(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    check_dataset(DATASET, "here")
    check_dataset({**DATASET, "title": "x" * 50, "subtitle": "x" * 80, "id": "a/" + "x" * 50}, "here")
    values = dict(DATASET)
    change(values)
    (tmp_path / "dataset-metadata.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=message) as caught:
        read_dataset(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/dataset-metadata.json: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("enable_internet"), "'enable_internet' is missing"),
        (lambda values: values.update(enable_internet="no"), "'enable_internet' is 'no'; write true or false"),
        (lambda values: values.update(title="abcd", id="someone/abcd"), "'title' has 4 characters"),
        (lambda values: values.update(title="Another"), "gives the address 'another'"),
        (lambda values: values.update(id="my-kernel-2"), "write owner/slug"),
        (lambda values: values.pop("code_file"), "code_file"),
        (lambda values: values.update(language="julia"), "'language' is 'julia'"),
        (lambda values: values.pop("kernel_type"), "'kernel_type' is 'None'"),
        (lambda values: values.update(dataset_sources=["pack"]), "'pack' is not of the form owner/slug"),
        (lambda values: values.update(competition_sources="elpv"), "must be a list"),
    ],
)
def test_rules_of_a_kernel(change: Callable[[dict[str, Any]], object], message: str) -> None:
    check_kernel(KERNEL, "here")
    values = dict(KERNEL)
    change(values)
    with pytest.raises(BadInput, match=message):
        check_kernel(values, "here")


def test_what_is_no_object_is_refused() -> None:
    for check in (check_dataset, check_kernel):
        with pytest.raises(BadInput, match="not a JSON object"):
            check([], "here")
