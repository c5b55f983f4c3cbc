"""Columns of the CSV as numbers: what is fitted, what is unknown, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfold.config.schema import Metadata
from goldfold.errors import BadInput
from goldfold.metadata import MetadataEncoder, categories_of, fit_metadata

TRAIN = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "age": ["20", "40", "", "60"],
        "width": ["1.5", "1.5", "1.5", "1.5"],
        "sex": ["m", "f", "", "f"],
        "site": ["1", "2", "10", "2"],
    }
)
SETTINGS = Metadata(numeric=("age", "width"), categorical=("sex", "site"))


def table(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_a_row_becomes_scaled_numbers_flags_and_one_hot_groups() -> None:
    encoder = fit_metadata(SETTINGS, TRAIN, "train.csv")
    std = np.std([20, 40, 60])
    assert encoder.mean == pytest.approx((40, 1.5))
    assert encoder.std == pytest.approx((std, 1))
    assert encoder.vocabularies == (("f", "m"), ("1", "10", "2"))
    assert (encoder.n_numeric, encoder.widths, encoder.width) == (2, (3, 4), 11)
    values = encoder.transform(TRAIN, "train.csv")
    assert values.shape == (4, 11)
    assert values.dtype == np.float32
    expected = [
        [-20 / std, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        [20 / std, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    ]
    assert np.allclose(values, expected)


def test_numbers_are_scaled_by_the_rows_that_were_fitted() -> None:
    encoder = fit_metadata(Metadata(numeric=("age",)), TRAIN.iloc[:2], "train.csv")
    assert encoder.transform(TRAIN, "train.csv")[:, 0].tolist() == [-1, 1, 0, 3]


def test_unknown_and_missing_categories_share_the_first_place() -> None:
    encoder = fit_metadata(Metadata(categorical=("sex",)), TRAIN, "train.csv")
    values = encoder.transform(table(sex=["x", "", None, np.nan, " f ", "nan"]), "test.csv")
    assert values.argmax(axis=1).tolist() == [0, 0, 0, 0, 1, 0]
    assert (values.sum(axis=1) == 1).all()


def test_outliers_and_constant_columns_stay_in_range() -> None:
    encoder = fit_metadata(SETTINGS, TRAIN, "train.csv")
    test = table(age=["-999", "1e300", "60"], width=["1.5", "9e9", "2"], sex=["m"] * 3, site=["1"] * 3)
    values = encoder.transform(test, "test.csv")
    assert values[:2, 0].tolist() == [-5, 5]
    assert values[:, 2].tolist() == [0, 5, 0.5]
    for extreme in (["1e308", "-1e308"], ["1e-320", "2e-320"], ["0.1", "0.1"], ["1600000000", "1600000100"]):
        fitted = fit_metadata(Metadata(numeric=("x",)), table(x=extreme), "train.csv")
        constant = extreme[0] == extreme[1]
        expected = [0, 0] if constant else [-1, 1] if float(extreme[0]) < float(extreme[1]) else [1, -1]
        assert fitted.transform(table(x=extreme), "train.csv")[:, 0].tolist() == pytest.approx(expected, abs=1e-3)
    assert fitted.transform(table(x=extreme), "train.csv")[:, 0].tolist() == [-1, 1]


def test_every_way_to_write_a_missing_number_is_one() -> None:
    encoder = fit_metadata(Metadata(numeric=("x",)), table(x=["1", "3"]), "train.csv")
    values = encoder.transform(table(x=["", " ", "NA", "NaN", "null", "None", "n/a", None, np.nan, 3]), "test.csv")
    assert values[:, 1].tolist() == [1] * 9 + [0]
    assert values[:, 0].tolist() == [0] * 9 + [1]


def test_a_number_is_one_category_however_it_is_written() -> None:
    texts = [
        "1",
        "1.0",
        " 1.00",
        "+1",
        "1e0",
        "0.5",
        ".50",
        "-0.0",
        "0",
        "1000",
        "1e3",
        "007",
        "A1",
        "e5",
        "1e999999999",
    ]
    plain = ["1"] * 5 + ["0.5"] * 2 + ["0"] * 2 + ["1000"] * 2 + ["007", "A1", "e5", "1e999999999"]
    assert categories_of(table(x=texts), "x") == plain
    train = fit_metadata(Metadata(categorical=("x",)), table(x=["1", "2", "NA"]), "train.csv")
    test = train.transform(table(x=["1.0", "2.0", "NA", "3.0"]), "test.csv")  # as pandas writes it beside empty cells
    assert test.argmax(axis=1).tolist() == [1, 2, 3, 0]
    typed = train.transform(table(x=[1.0, 2.0, np.nan]), "test.csv")
    assert typed.argmax(axis=1).tolist() == [1, 2, 0]


def test_the_encoder_survives_json() -> None:
    encoder = fit_metadata(SETTINGS, TRAIN, "train.csv")
    back = MetadataEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert back == encoder
    assert np.array_equal(back.transform(TRAIN, "x"), encoder.transform(TRAIN, "x"))
    nothing = fit_metadata(Metadata(), TRAIN, "train.csv")
    assert nothing.transform(TRAIN, "train.csv").shape == (4, 0)
    assert MetadataEncoder.from_dict(json.loads(json.dumps(nothing.to_dict()))) == nothing


@pytest.mark.parametrize(
    "change",
    [
        {"std": [1.0]},
        {"std": [0.0, 1.0]},
        {"mean": ["x", 1]},
        {"vocabularies": []},
        {"numeric": None},
        {"mean": [1e999, 0]},
    ],
)
def test_a_broken_record_is_refused(change: dict[str, Any]) -> None:
    values = fit_metadata(SETTINGS, TRAIN, "train.csv").to_dict()
    with pytest.raises(BadInput, match="metadata"):
        MetadataEncoder.from_dict(values | change)
    with pytest.raises(BadInput, match="metadata"):
        MetadataEncoder.from_dict({})


def test_text_among_numbers_is_named_with_its_row() -> None:
    bad = TRAIN.assign(age=["20", "40", "old", "60"])
    with pytest.raises(BadInput, match=r"train.csv: 'old' in the numeric column 'age', id 'c', is not a number"):
        fit_metadata(SETTINGS, bad, "train.csv")
    encoder = fit_metadata(SETTINGS, TRAIN, "train.csv")
    with pytest.raises(BadInput, match=r"test.csv: 'old' .* id 'c'"):
        encoder.transform(bad, "test.csv")
    # Without the id column: the line of the file, in a part of the table too.
    with pytest.raises(BadInput, match=r"'old' .* row 4,"):
        encoder.transform(bad.drop(columns="id").iloc[2:], "test.csv")
    for text in ("inf", "1,5", "0x10", "1_000", "True"):
        with pytest.raises(BadInput, match="is not a number"):
            fit_metadata(Metadata(numeric=("x",)), table(x=["1", text]), "train.csv")


def test_a_missing_column_is_refused_with_near_names() -> None:
    with pytest.raises(BadInput, match=r"'ages' of model.metadata is missing; did you mean 'age'"):
        fit_metadata(Metadata(numeric=("ages",)), TRAIN, "train.csv")
    encoder = fit_metadata(SETTINGS, TRAIN, "train.csv")
    for column in ("width", "site"):
        with pytest.raises(BadInput, match=f"test.csv: the column '{column}' of model.metadata is missing"):
            encoder.transform(TRAIN.drop(columns=column), "test.csv")


def test_columns_that_can_teach_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match="named twice"):
        fit_metadata(Metadata(numeric=("age", "age")), TRAIN, "train.csv")
    for settings in (Metadata(numeric=("x",)), Metadata(categorical=("x",))):
        with pytest.raises(BadInput, match="no training row has a value in the column 'x'"):
            fit_metadata(settings, table(x=["", "nan"]), "train.csv")


@given(
    st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=20).filter(
        lambda cells: any(c is not None for c in cells)
    )
)
def test_fitted_numbers_have_mean_0_and_their_flags(cells: list[float | None]) -> None:
    column = table(x=["" if cell is None else repr(cell) for cell in cells])
    encoder = fit_metadata(Metadata(numeric=("x",)), column, "train.csv")
    values = encoder.transform(column, "train.csv")
    known = np.array([cell is not None for cell in cells])
    assert values[:, 1].tolist() == (~known).tolist()
    assert (values[~known, 0] == 0).all()
    assert np.isfinite(values).all()
    assert (np.abs(values) <= 5).all()
