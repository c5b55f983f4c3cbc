"""The ablation: which rows a list of tricks makes, what the intervals say, and the command from end to end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goldfold import files
from goldfold.cli import main
from goldfold.config import Config, config_from_dict, load_config
from goldfold.errors import BadInput
from goldfold.folds import accept_source
from goldfold.metrics import get_metric
from goldfold.paths import Workspace
from goldfold.pipeline import ablate as ablate_module
from goldfold.pipeline import ablation_plan
from goldfold.pipeline.ablate import ablate, parse_items, plan_rows
from goldfold.pipeline.ablation_plan import Kind, Row
from goldfold.pipeline.ablation_plot import draw_table
from goldfold.pipeline.ablation_report import Findings, Measure, compare, table_frame, table_markdown
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.paired import NO_SPREAD, WITHIN, Interval, paired, verdict
from goldfold.pipeline.stages import load_folds
from goldfold.records import Predictions
from goldfold.tricks import TRICKS, find_trick
from tests.pipeline.competitions import make_competition


@dataclass(frozen=True)
class StubTrick:
    name: str
    on: dict[str, Any] = field(default_factory=dict)
    off: dict[str, Any] = field(default_factory=dict)
    note: str = ""


STUBS = {
    trick.name: trick
    for trick in (
        StubTrick("mixup", {"mix.mixup": 0.2}, {"mix.mixup": 0.0}),
        StubTrick("smoothing", {"loss.smoothing": 0.1}, {"loss.smoothing": 0.0}),
        StubTrick("warmup", {"schedule.warmup_epochs": 1.0}, {"schedule.warmup_epochs": 0.0}),
        StubTrick("no_bias_decay", {"optim.decay_all": False}, {"optim.decay_all": True}),
        StubTrick("cosine", {"schedule.name": "cosine"}, {"schedule.name": "constant"}),
        StubTrick("linear", {"schedule.name": "linear"}, {"schedule.name": "constant"}),
        StubTrick(
            "dropouts",
            {"model.head.dropouts": 5, "model.drop_rate": 0.5},
            {"model.head.dropouts": 1, "model.drop_rate": 0.0},
        ),
        StubTrick("both_mixes", {"mix.mixup": 0.8, "mix.cutmix": 1.0}, {"mix.mixup": 0.0, "mix.cutmix": 0.0}),
        StubTrick(
            "polynomial",
            {"schedule.name": "polynomial", "schedule.power": 2.0},
            {"schedule.name": "constant", "schedule.power": 1.0},
        ),
        StubTrick("stages", {"model.freeze.stages": 2}, {"model.freeze.stages": 0}),
        StubTrick("gray", {"augment.add": [{"ToGray": {"p": 0.2}}]}, {"augment.add": []}),
        StubTrick("cutout", {"augment.add": [{"CoarseDropout": {"p": 0.5}}]}, {"augment.add": []}),
        StubTrick("gamma_ray", {"augment.add": [{"ToGray": {"p": 1.0}}]}, {"augment.add": []}),
        StubTrick("weights", note="names a file of yours"),
    )
}


def find_stub(name: str) -> StubTrick:
    if name not in STUBS:
        raise BadInput("tricks", f"unknown trick '{name}'", "did you mean 'mixup'?")
    return STUBS[name]


@pytest.fixture(autouse=True)
def stub_tricks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_plan, "find_trick", find_stub)


def config(**sections: Any) -> Config:
    competition = {
        "name": "page",
        "task": "multiclass",
        "metric": "accuracy",
        "train_csv": "train.csv",
        "test_csv": "test.csv",
        "sample_submission": "sample.csv",
        "image_path": "{id}.png",
    }
    return config_from_dict({"name": "page", "competition": competition, **sections}, "test")


def rows_of(kind: Kind, text: str, **sections: Any) -> list[Row]:
    whole = config(**sections)
    return plan_rows(kind, parse_items(text, whole), whole)


class TestItems:
    def test_a_list_is_split_outside_brackets(self) -> None:
        items = parse_items("mixup, betas:optim.betas=[0.9,0.99];optim.eps=1e-6 ,loss.gamma=3", config())
        assert [item.name for item in items] == ["mixup", "betas", "loss.gamma=3"]
        assert items[1].on == {"optim.betas": [0.9, 0.99], "optim.eps": 1e-6}
        assert items[2].on == {"loss.gamma": 3}

    def test_a_colon_after_the_sign_belongs_to_the_value(self) -> None:
        (item,) = parse_items("augment.add=[{ToGray: {p: 0.1}}]", config())
        assert item.on == {"augment.add": [{"ToGray": {"p": 0.1}}]}

    def test_a_section_as_value_leaves_its_other_keys(self) -> None:
        (item,) = parse_items("ema:train.ema={decay: 0.9}", config(train={"ema": {"decay": 0.5, "warmup": False}}))
        assert item.on == {"train.ema.decay": 0.9}

    def test_a_new_key_of_a_free_section(self) -> None:
        whole = config()
        rows = plan_rows("add", parse_items("nesterov:optim.args={nesterov: true}", whole), whole)
        assert [row.config.optim.args for row in rows] == [{}, {"nesterov": True}]
        rows = plan_rows("add", parse_items("optim.args.nesterov=true", whole), whole)
        assert [row.config.optim.args for row in rows] == [{}, {"nesterov": True}]

    def test_what_the_configuration_has_on_keeps_its_values(self) -> None:
        (item,) = parse_items("mixup", config(mix={"mixup": 0.4}))
        assert (item.on, item.off) == ({"mix.mixup": 0.4}, {"mix.mixup": 0.0})
        (item,) = parse_items("dropouts", config(model={"head": {"dropouts": 3}, "drop_rate": 0.1}))
        assert item.on == {"model.head.dropouts": 3, "model.drop_rate": 0.1}

        (item,) = parse_items("polynomial", config(schedule={"name": "polynomial"}))
        assert item.on == {"schedule.name": "polynomial", "schedule.power": 1.0}

    def test_half_of_a_trick_is_another_trick(self) -> None:
        (item,) = parse_items("dropouts", config(model={"drop_rate": 0.1}))
        assert item.on == {"model.head.dropouts": 5, "model.drop_rate": 0.5}
        (item,) = parse_items("both_mixes", config(mix={"mixup": 0.4}))
        assert item.on == {"mix.mixup": 0.8, "mix.cutmix": 1.0}
        (item,) = parse_items("stages", config(model={"freeze": {"stages": "all"}}))
        assert item.on == {"model.freeze.stages": 2}

    def test_another_word_is_another_trick(self) -> None:
        (item,) = parse_items("cosine", config(schedule={"name": "linear"}))
        assert item.on == {"schedule.name": "cosine"}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("mixupp", "did you mean 'mixup'"),
            ("weights", "names a file of yours.*weights:key=value"),
            ("mixup,,cosine", "empty item"),
            ("mixup,mixup", "stands twice"),
            ("a:mix.mixup=[0.1", "do not match"),
            ("a:mix.mixup", "unknown trick"),
            ("a:mix.mixup=1;cutmix", "cannot be read"),
            ("base:mix.mixup=1", "first row"),
            ("train.seed=3", "--seeds"),
            ("folds.n=3", "cannot be compared"),
            ("competition.metric=auc", "cannot be compared"),
            ("teacher={runs: [a]}", "without teachers"),
        ],
    )
    def test_refusals_are_one_line(self, text: str, said: str) -> None:
        with pytest.raises(BadInput, match=said) as caught:
            parse_items(text, config())
        assert "\n" not in str(caught.value)

    def test_external_images_may_be_varied(self) -> None:
        assert parse_items("more:competition.external=[{csv: a.csv, image_path: '{id}.png'}]", config())


class TestRows:
    def test_a_stack_adds_one_a_row(self) -> None:
        rows = rows_of("stack", "warmup,mixup,smoothing", mix={"mixup": 0.4})
        settings = [
            (row.config.schedule.warmup_epochs, row.config.mix.mixup, row.config.loss.smoothing) for row in rows
        ]
        assert settings == [(0, 0, 0), (1, 0, 0), (1, 0.4, 0), (1, 0.4, 0.1)]
        assert [row.against for row in rows] == [None, 0, 1, 2]
        assert [row.name for row in rows] == ["base", "warmup", "mixup", "smoothing"]
        assert rows[3].changes == {"loss.smoothing": 0.1}

    def test_add_is_each_alone(self) -> None:
        rows = rows_of("add", "mixup,smoothing,no_bias_decay")
        settings = [(row.config.mix.mixup, row.config.loss.smoothing, row.config.optim.decay_all) for row in rows]
        assert settings == [(0, 0, True), (0.2, 0, True), (0, 0.1, True), (0, 0, False)]
        assert [row.against for row in rows] == [None, 0, 0, 0]

    def test_drop_leaves_each_out(self) -> None:
        rows = rows_of("drop", "mixup,smoothing")
        assert [(row.config.mix.mixup, row.config.loss.smoothing) for row in rows] == [(0.2, 0.1), (0, 0.1), (0.2, 0)]
        assert [row.name for row in rows] == ["all", "without-mixup", "without-smoothing"]

    def test_an_inline_item_is_off_as_the_configuration_has_it(self) -> None:
        rows = rows_of("stack", "big:optim.lr=0.1;mix.cutmix=1", optim={"lr": 0.03})
        assert [(row.config.optim.lr, row.config.mix.cutmix) for row in rows] == [(0.03, 0), (0.1, 1)]

    def test_rows_never_predict_the_test_set(self) -> None:
        for row in rows_of("stack", "mixup", train={"seed": 3, "seeds": [4, 5]}):
            assert row.config.competition.test_csv is None
            assert row.config.competition.sample_submission is None
            assert row.config.train.seeds == ()

    def test_equal_rows_train_once(self) -> None:
        rows = rows_of("stack", "mixup,same:loss.gamma=2,smoothing")
        assert [row.same_as for row in rows] == [None, None, "mixup", None]

    def test_two_writers_of_one_key_are_refused(self) -> None:
        with pytest.raises(BadInput, match=r"'cosine' and 'linear'.*schedule\.name"):
            rows_of("stack", "cosine,mixup,linear")
        with pytest.raises(BadInput, match=r"'cosine' and 'linear'"):
            rows_of("drop", "cosine,linear")
        rows = rows_of("add", "cosine,linear", schedule={"name": "exponential"})
        assert [row.config.schedule.name for row in rows] == ["constant", "cosine", "linear"]
        with pytest.raises(BadInput, match="'mixup' and 'big'"):  # off means two different things
            rows_of("add", "mixup,big:mix.mixup=0.8", mix={"mixup": 0.4})
        assert rows_of("stack", "mixup,big:mix.mixup=0.2;loss.smoothing=0.1")[2].config.loss.smoothing == 0.1

    def test_a_part_and_its_whole_are_refused(self) -> None:
        with pytest.raises(BadInput, match="'a' and 'b'"):
            rows_of("stack", "a:optim.args={};loss.gamma=1,b:optim.args.nesterov=true")

    def test_added_transforms_live_side_by_side(self) -> None:
        own = {"add": [{"CoarseDropout": {"p": 0.9}}, {"Sharpen": None}]}
        rows = rows_of("stack", "gray,cutout", augment=own)
        assert [list(row.config.augment.add) for row in rows] == [
            [{"Sharpen": None}],
            [{"Sharpen": None}, {"ToGray": {"p": 0.2}}],
            [{"CoarseDropout": {"p": 0.9}}, {"Sharpen": None}, {"ToGray": {"p": 0.2}}],
        ]
        with pytest.raises(BadInput, match="'gray' and 'gamma_ray'"):
            rows_of("stack", "gray,gamma_ray")
        assert len(rows_of("add", "gray,gamma_ray")) == 3
        for kind in ("stack", "add"):
            with pytest.raises(BadInput, match="'gray' and 'mine'"):
                rows_of(kind, "gray,mine:augment.add=[{Sharpen: null}]")  # type: ignore[arg-type]

    def test_a_refused_row_is_named(self) -> None:
        with pytest.raises(BadInput, match=r"row '\+ half': 'mix\.mixup'"):
            rows_of("stack", "smoothing,half:mix.mixup=-1")
        with pytest.raises(BadInput, match=r"row '\+ typo'.*did you mean 'mix\.mixup'"):
            rows_of("stack", "typo:mix.mixupp=1")
        with pytest.raises(BadInput, match=r"row '\+ cycle': .*warms up by itself"):
            rows_of("stack", "warmup,cycle:schedule.name=one_cycle")

    @pytest.mark.parametrize(
        ("name", "sections"),
        [
            ("mixup", {"mix": {"mixup": 0.2, "prob": 0.5}}),
            ("cutmix", {"mix": {"mixup": 0.2, "cutmix": 1.0, "switch_prob": 0.3}}),
            ("ema", {"train": {"ema": {"decay": 0.9, "warmup": False}}}),
            ("swa", {"train": {"swa": {"epochs": 2, "lr_factor": 0.2}}}),
            ("prune", {"train": {"prune": {"amount": 0.5, "after": 2}}}),
            ("tta_flip", {"tta": {"views": "flip", "merge": "gmean"}}),
            ("one_cycle", {"schedule": {"name": "one_cycle", "warmup_epochs": 0, "peak_at": 0.4}}),
            ("linear_scaling", {"optim": {"lr_scaling": "linear", "lr_batch": 64}}),
        ],
    )
    def test_a_trick_that_is_left_out_takes_its_finer_settings_along(
        self, name: str, sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They would have no effect in that row, which a configuration refuses."""
        monkeypatch.setattr(ablation_plan, "find_trick", find_trick)
        whole, without = rows_of("drop", name, **sections)
        assert whole.changes == {}
        assert len(without.changes) == 2
        # A key that an item sets on purpose is refused still.
        with pytest.raises(BadInput, match=r"row '\+ idle': train\.ema\.warmup does nothing"):
            rows_of("add", "idle:train.ema.warmup=false")

    def test_teachers_are_refused(self) -> None:
        with pytest.raises(BadInput, match="without teachers"):
            rows_of("stack", "mixup", teacher={"runs": ["other"], "distill": {"weight": 0.5}})

    def test_views_alone(self) -> None:
        assert rows_of("add", "tta=d4")[1].changes == {"tta.views": "d4"}

    def test_folder_names(self) -> None:
        rows = rows_of("add", "optim.lr=1e-2,augment.add=[{RandomBrightnessContrast: {p: 0.5}},{ToGray: {p: 0.1}}]")
        assert rows[1].name == "optim.lr-1e-2"
        assert len(rows[2].name) <= 60
        with pytest.raises(BadInput, match="same folder name"):
            rows_of("add", "a b:optim.lr=1e-2,a-b:mix.mixup=1")


@pytest.mark.parametrize("name", [name for name, trick in TRICKS.items() if trick.on])
def test_every_trick_has_a_row_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_plan, "find_trick", find_trick)
    rows = rows_of("add", name, model={"pretrained": False}, augment={"preset": "none"}, train={"epochs": 8})
    assert rows[1].same_as is None
    rows = rows_of("drop", name, model={"pretrained": False}, augment={"preset": "none"}, train={"epochs": 8})
    assert rows[1].same_as is None


class TestIntervals:
    def test_known_values(self) -> None:
        # t(0.975, 3) = 3.1824; standard deviation of 1..4 is 1.2910
        found = paired([1.0, 2.0, 3.0, 4.0])
        assert (found.n, found.mean) == (4, 2.5)
        assert found.low == pytest.approx(2.5 - 3.182446 * 1.290994 / 2, abs=1e-5)
        assert found.high == pytest.approx(2.5 + 3.182446 * 1.290994 / 2, abs=1e-5)
        two = paired([0.0, 1.0])  # t(0.975, 1) = 12.7062
        assert two.high == pytest.approx(0.5 + 12.7062 * 0.5, abs=1e-3)
        assert paired([0.0, 1.0], level=0.5).high == pytest.approx(0.5 + 0.5, abs=1e-6)  # t(0.75, 1) = 1

    def test_one_difference_has_no_interval(self) -> None:
        assert paired([0.3]) == Interval(1, 0.3)
        with pytest.raises(ValueError, match="no differences"):
            paired([])

    def test_verdicts(self) -> None:
        assert verdict(Interval(4, 0.1, 0.05, 0.15), True) == "better"
        assert verdict(Interval(4, 0.1, 0.05, 0.15), False) == "worse"
        assert verdict(Interval(4, -0.1, -0.15, -0.05), False) == "better"
        assert verdict(Interval(4, -0.1, -0.15, -0.05), True) == "worse"
        assert verdict(Interval(4, 0.1, -0.05, 0.25), True) == WITHIN == "within noise"
        assert verdict(Interval(1, 0.1), True) == "one seed: no interval"
        assert verdict(paired([0.1, 0.1, 0.1]), True) == NO_SPREAD
        assert verdict(paired([0.0, 0.0]), True) == WITHIN


def measured(values: dict[str, list[list[float | None]]], speeds: dict[str, float] | None = None) -> list[Measure]:
    """``values``: by row, a list a seed of scores a fold."""
    return [
        Measure(row, seed, fold, {"accuracy": value, "macro_f1": 0.5}, (speeds or {}).get(row, 100.0))
        for row, seeds in values.items()
        for seed, folds in enumerate(seeds)
        for fold, value in enumerate(folds)
    ]


METRICS = [get_metric("accuracy"), get_metric("macro_f1")]


def found(kind: Kind, rows: Sequence[Row], measures: Sequence[Measure], seeds: int, folds: int) -> Findings:
    return compare(kind, rows, measures, METRICS, range(folds), range(seeds))


class TestComparison:
    def test_a_stack_by_hand(self) -> None:
        rows = rows_of("stack", "mixup,smoothing")
        values: dict[str, list[list[float | None]]] = {
            "base": [[0.5, 0.7], [0.6, 0.6], [0.4, 0.6]],  # means over folds 0.6, 0.6, 0.5
            "mixup": [[0.7, 0.7], [0.72, 0.72], [0.6, 0.6]],  # 0.7, 0.72, 0.6: +0.10, +0.12, +0.10
            "smoothing": [[0.6, 0.6], [0.8, 0.8], [0.62, 0.62]],  # -0.10, +0.08, +0.02
        }
        table = found("stack", rows, measured(values, {"base": 200.0, "mixup": 100.0, "smoothing": 150.0}), 3, 2)
        base, mixup, smoothing = table.lines
        assert base.mean == pytest.approx(1.7 / 3)
        assert base.std == pytest.approx(np.std([0.6, 0.6, 0.5], ddof=1))
        assert (base.difference, base.verdict, base.ratio) == (None, "", 1.0)
        assert mixup.difference == paired([0.7 - 0.6, 0.72 - 0.6, 0.6 - 0.5])
        assert (mixup.verdict, mixup.images_per_second, mixup.ratio) == ("better", 100.0, 0.5)
        assert smoothing.difference is not None
        assert smoothing.difference.mean == pytest.approx(0.0)
        assert (smoothing.verdict, smoothing.ratio) == (WITHIN, 0.75)
        assert table.total is not None
        assert table.total.mean == pytest.approx((0.0 + 0.2 + 0.12) / 3)
        assert table.total_verdict == WITHIN
        assert base.others == {"macro_f1": 0.5}
        frame = table_frame(table)
        assert list(frame["row"]) == ["base", "mixup", "smoothing", "total"]
        assert frame["accuracy_mean"][1] == mixup.mean

    def test_add_and_drop_compare_with_the_first_row(self) -> None:
        values: dict[str, list[list[float | None]]] = {
            "base": [[0.5], [0.51]],
            "mixup": [[0.6], [0.62]],
            "smoothing": [[0.4], [0.42]],
        }
        table = found("add", rows_of("add", "mixup,smoothing"), measured(values), 2, 1)
        assert [line.difference and round(line.difference.mean, 3) for line in table.lines] == [None, 0.105, -0.095]
        assert table.total is None

    def test_less_is_better(self) -> None:
        rows = rows_of("stack", "mixup")
        measures = [
            Measure(row, seed, 0, {"rmse": value}, None)
            for row, values in {"base": [2.0, 2.1, 2.2], "mixup": [1.0, 1.11, 1.2]}.items()
            for seed, value in enumerate(values)
        ]
        table = compare("stack", rows, measures, [get_metric("rmse")], [0], range(3))
        assert table.lines[1].difference is not None
        assert table.lines[1].difference.mean < 0
        assert table.lines[1].verdict == "better"
        assert "-0.9967" in table_markdown(table, "t", "c", "n")
        assert "lower is better" in table_markdown(table, "t", "c", "n")

    def test_only_whole_runs_and_common_seeds_count(self) -> None:
        rows = rows_of("stack", "mixup,smoothing")
        values: dict[str, list[list[float | None]]] = {"base": [[0.5, 0.5], [0.9, 0.9]], "mixup": [[0.6, 0.6], [0.99]]}
        table = found("stack", rows, measured(values), 2, 2)
        assert table.lines[1].difference == paired([0.6 - 0.5])
        assert [line.verdict for line in table.lines] == ["", "one seed: no interval", "not trained yet"]
        assert table.runs == (3, 6)
        assert "Unfinished: 3 of 6 runs" in table_markdown(table, "t", "c", "n")
        assert "speed" in table_markdown(found("stack", rows, [], 2, 2), "t", "c", "n")

    def test_a_fold_where_the_metric_is_undefined_counts_for_no_row(self) -> None:
        rows = rows_of("stack", "mixup")
        values: dict[str, list[list[float | None]]] = {
            "base": [[0.5, 0.1], [0.5, 0.1]],
            "mixup": [[0.6, None], [0.61, 0.3]],
        }
        table = found("stack", rows, measured(values), 2, 2)
        assert table.undefined == (1,)
        assert table.lines[1].difference == paired([0.6 - 0.5, 0.61 - 0.5])
        assert "undefined there: fold 1" in table_markdown(table, "t", "c", "n")

    def test_equal_rows_share_their_runs(self) -> None:
        rows = rows_of("stack", "mixup,same:loss.gamma=2")
        values: dict[str, list[list[float | None]]] = {"base": [[0.5], [0.6]], "mixup": [[0.7], [0.9]]}
        table = found("stack", rows, measured(values), 2, 1)
        assert table.lines[2].mean == table.lines[1].mean
        assert (table.lines[2].verdict, table.lines[2].difference) == ("same settings as row 1", None)
        assert table.runs == (4, 4)

    def test_the_markdown_says_what_was_compared(self) -> None:
        rows = rows_of("stack", "mixup,smoothing")
        values: dict[str, list[list[float | None]]] = {row.name: [[0.5], [0.6]] for row in rows}
        text = table_markdown(
            found("stack", rows, measured(values), 2, 1), "tiny", "goldfold ablate x", "cats", ["Ho."]
        )
        for part in ("goldfold ablate x", "cats", "accuracy", "seeds 0, 1", "fold 0", "within noise", "not corrected"):
            assert part in text
        assert "3 comparisons" in text
        assert text.endswith("- Ho.\n")
        assert text.count("| within noise") == 3


def test_the_picture_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of("stack", "mixup,smoothing")
    values: dict[str, list[list[float | None]]] = {"base": [[0.5], [0.6]], "mixup": [[0.7], [0.9]]}
    table = found("stack", rows, measured(values), 2, 1)
    assert draw_table(table, "tiny", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not draw_table(table, "tiny", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


class FakeTraining:
    """In place of train_run: predictions that mixup makes better, and each seed a little different."""

    def __init__(self) -> None:
        self.trained: list[str] = []

    def __call__(self, config: Config, workspace: Workspace, only_folds: Sequence[int] = ()) -> dict[str, Any]:
        assert config.competition.test_csv is None
        data = load_competition(config.competition, workspace.root)
        (table,) = load_folds(config, data, workspace)
        paths = workspace.run(str(config.name))
        times = {}
        for fold in only_folds or table.folds:
            where = paths.fold(fold)
            times[where.folder.name] = {"images_per_second": 50.0}
            if where.done.exists():
                continue
            self.trained.append(f"{config.name}-fold{fold}")
            ids = table.valid_ids(fold)
            rng = np.random.default_rng([config.train.seed, fold])
            noise = 1.0 - (0.6 if config.mix.mixup else 0.0) + 0.1 * rng.random()
            values = data.targets_of(ids) + noise * rng.normal(size=(len(ids), len(data.task.classes)))
            if data.task.name != "regression":
                values = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
            part = Predictions(ids, values.astype(np.float32), data.task.classes, "r", np.full(len(ids), fold))
            part.write(where.oof, config.competition.id)
            where.last.mkdir()
            for path in (where.weights, where.last / "model.safetensors"):
                path.write_bytes(b"weights")
            files.write_json(where.done, {"fingerprint": "x"})
        files.write_json(paths.record, {"folds": times})
        return {}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    training = FakeTraining()
    monkeypatch.setattr(ablate_module, "train_run", training)
    monkeypatch.setattr(ablate_module, "check_experiment", lambda *a, **k: [])
    monkeypatch.setattr(ablate_module, "draw_table", lambda findings, title, path: path.write_bytes(b"a picture"))
    return training


Command = Callable[..., Path]


@pytest.fixture
def command(project: Path) -> Command:
    """The ablation of the tiny competition's configuration, with what differs from the defaults."""

    def run(path: Path, items: str = "mixup,smoothing", **options: Any) -> Path:
        kind: Kind = options.pop("kind", "stack")
        given = {"overrides": [], "seeds": 2, "folds": [0], "name": None, "keep_weights": False, **options}
        return ablate(path, kind=kind, items=items, workspace=Workspace(Path()), **given)

    return run


class TestCommand:
    def test_it_writes_tables_and_keeps_no_weights(self, project: Path, fake: FakeTraining, command: Command) -> None:
        path = make_competition(project)
        assert command(path) == Path("ablations/tiny-stack/table.md")
        folder = project / "ablations/tiny-stack"
        assert fake.trained == [f"{row}-seed{s}-fold0" for s in (0, 1) for row in ("base", "mixup", "smoothing")]
        assert {p.name for p in folder.iterdir()} == {
            "ablation.json", "scores.csv", "table.csv", "table.md", "plot.png", "runs"
        }  # fmt: skip
        text = (folder / "table.md").read_text()
        command_line = f"goldfold ablate {path} --stack mixup,smoothing --seeds 2 --folds 0"
        assert command_line in text
        assert "within noise" in next(line for line in text.splitlines() if "+ smoothing" in line)
        record = files.read_json(folder / "ablation.json")
        assert record["command"] == command_line
        assert [row["changes"] for row in record["rows"]][:2] == [{}, {"mix.mixup": 0.2}]
        assert (record["seeds"], record["folds"]) == ([0, 1], [0])
        assert not list(folder.rglob("*.safetensors"))
        assert len(files.read_csv(folder / "scores.csv")) == 6
        assert not (project / "runs").exists()

    def test_it_goes_on_and_may_grow(self, project: Path, fake: FakeTraining, command: Command) -> None:
        path = make_competition(project)
        command(path, keep_weights=True)
        folder = project / "ablations/tiny-stack"
        assert len(list(folder.rglob("model.safetensors"))) == 12
        before = {name: (folder / name).read_bytes() for name in ("table.md", "scores.csv")}
        shutil.rmtree(folder / "runs/mixup-seed1")
        fake.trained.clear()
        command(path, keep_weights=True)
        assert fake.trained == ["mixup-seed1-fold0"]
        assert sorted((folder / "scores.csv").read_text().splitlines()) == sorted(
            before["scores.csv"].decode().splitlines()
        )
        assert (folder / "table.md").read_bytes() == before["table.md"]
        fake.trained.clear()
        command(path, items="mixup,smoothing,dropouts", seeds=3)
        assert fake.trained == [
            "dropouts-seed0-fold0", "dropouts-seed1-fold0",
            *(f"{row}-seed2-fold0" for row in ("base", "mixup", "smoothing", "dropouts")),
        ]  # fmt: skip
        fake.trained.clear()
        command(path, items="mixup,smoothing,dropouts", seeds=3, folds=[])
        assert len(fake.trained) == 12
        assert all(name.endswith("fold1") for name in fake.trained)

    def test_the_command_line(self, project: Path, fake: FakeTraining, capsys: pytest.CaptureFixture[str]) -> None:
        path = str(make_competition(project))
        arguments = [
            "ablate",
            path,
            "train.seed=3",
            "--add",
            "mixup,loss.gamma=2.0",
            "--seeds",
            "2",
            "--folds",
            "0",
            "--name",
            "mine",
        ]
        assert main(arguments) == 0
        assert fake.trained == [f"{row}-seed{seed}-fold0" for seed in (3, 4) for row in ("base", "mixup")]
        printed = capsys.readouterr().out
        assert f"goldfold {' '.join(arguments)}" in printed
        assert "difference to 'base'" in printed
        assert "same settings as row 0" in printed
        assert "wrote ablations/mine" in printed
        assert main(["ablate", path, "--add", "mixupp", "--seeds", "2"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "did you mean 'mixup'" in line

    def test_scores_are_matched_by_id(self, project: Path, fake: FakeTraining, command: Command) -> None:
        path = make_competition(project)
        command(path, items="mixup", seeds=1)
        folder = project / "ablations/tiny-stack"
        first = (folder / "scores.csv").read_text()
        oof = folder / "runs/base-seed0/fold0/oof.parquet"
        shuffled = files.read_parquet(oof).sample(frac=1, random_state=0)
        files.write_parquet(oof, shuffled)
        command(path, items="mixup", seeds=1)
        assert (folder / "scores.csv").read_text() == first

    def test_less_is_better(self, project: Path, fake: FakeTraining, command: Command) -> None:
        path = make_competition(project, task="regression")
        command(path, items="mixup", seeds=4, folds=[])
        text = (project / "ablations/tiny-stack/table.md").read_text()
        (line,) = [line for line in text.splitlines() if "+ mixup" in line]
        assert "| better" in line
        assert "| -" in line
        assert "lower is better" in text

    def test_another_ablation_of_that_name_is_refused(
        self, project: Path, fake: FakeTraining, command: Command
    ) -> None:
        path = make_competition(project)
        command(path)
        folder = project / "ablations/tiny-stack"
        before = {name.name: name.read_bytes() for name in folder.glob("*.*")}
        others: list[tuple[dict[str, Any], str]] = [
            ({"overrides": ["optim.lr=0.5"]}, "other settings.*optim.lr"),
            ({"items": "smoothing,mixup"}, "another row"),
            ({"items": "mixup"}, "another row 'smoothing'"),
            ({"items": "mixup,smoothing:loss.smoothing=0.3"}, "another row 'smoothing'"),
            ({"kind": "add", "name": "tiny-stack"}, "--stack"),
            ({"seeds": 1}, "seed 1 too"),
            ({"folds": [1]}, "fold 0 too"),
        ]
        for change, said in others:
            with pytest.raises(BadInput, match=said):
                command(path, **change)
        train = project / "data/tiny/train.csv"
        text = train.read_text()
        train.write_text(text.replace("site", "place"))
        accept_source(project / "folds/tiny.csv", files.read_csv(train), train_csv=train)
        with pytest.raises(BadInput, match="another file behind train_csv"):
            command(path)
        train.write_text(text)
        accept_source(project / "folds/tiny.csv", files.read_csv(train), train_csv=train)
        with files.locked(folder), pytest.raises(BadInput, match="another process"):
            command(path)
        assert {name.name: name.read_bytes() for name in folder.glob("*.*")} == before

    def test_what_was_not_measured_does_not_bind(self, project: Path, fake: FakeTraining, command: Command) -> None:
        path = make_competition(project)
        command(path)
        shutil.rmtree(project / "ablations/tiny-stack/runs/smoothing-seed0")
        shutil.rmtree(project / "ablations/tiny-stack/runs/smoothing-seed1")
        command(path, items="mixup,dropouts")
        assert "dropouts" in (project / "ablations/tiny-stack/table.md").read_text()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"seeds": 0}, "--seeds"),
            ({"folds": [7]}, "no fold 7"),
            ({"folds": [0, 0]}, "stands twice"),
            ({"name": "../out"}, "folder name"),
            ({"items": "smoothing,bad:optim.lr=-1"}, r"row '\+ bad'"),
        ],
    )
    def test_refused_before_anything_is_trained(
        self, project: Path, fake: FakeTraining, command: Command, change: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(BadInput, match=said):
            command(make_competition(project), **change)
        assert not fake.trained
        assert not (project / "ablations").exists()

    def test_the_check_of_a_row_comes_first(
        self, project: Path, fake: FakeTraining, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def check(config: Config, workspace: Workspace, decode: bool = True) -> list[str]:
            return ["mix.mixup: this model cannot"] if config.mix.mixup else []

        monkeypatch.setattr(ablate_module, "check_experiment", check)
        with pytest.raises(BadInput, match=r"row '\+ mixup': mix.mixup: this model cannot"):
            command(make_competition(project))
        assert not fake.trained
        assert not list((project / "ablations").iterdir())


def test_the_command_trains_resumes_and_refuses(project: Path, command: Command) -> None:
    """With the real training: two rows, two seeds, one fold, one epoch."""
    path = make_competition(project, train={"epochs": 1})
    command(path, items="mixup")
    folder = project / "ablations/tiny-stack"
    text = (folder / "table.md").read_text()
    assert "+ mixup" in text
    runs = sorted(p.name for p in (folder / "runs").iterdir())
    assert runs == ["base-seed0", "base-seed1", "mixup-seed0", "mixup-seed1"]
    scores = files.read_csv(folder / "scores.csv")
    assert list(scores.columns) == ["row", "seed", "fold", "macro_f1", "accuracy", "images_per_second"]
    config = load_config(folder / "runs/mixup-seed1/config.yaml")
    assert (config.mix.mixup, config.train.seed, config.train.seeds) == (0.2, 1, ())
    left = {path.name for path in (folder / "runs/mixup-seed1/fold0").iterdir()}
    assert left == {"DONE", "metrics.jsonl", "oof.parquet"}
    done = {run: (folder / "runs" / run / "fold0/DONE").stat().st_mtime_ns for run in runs}
    shutil.rmtree(folder / "runs/mixup-seed0")
    command(path, items="mixup")
    again = {run: (folder / "runs" / run / "fold0/DONE").stat().st_mtime_ns for run in runs}
    assert [run for run in runs if done[run] != again[run]] == ["mixup-seed0"]
    keys = ["row", "seed", "fold", "macro_f1", "accuracy"]
    after = files.read_csv(folder / "scores.csv")
    assert sorted(map(tuple, after[keys].to_numpy())) == sorted(map(tuple, scores[keys].to_numpy()))
    with pytest.raises(BadInput, match="other settings"):
        command(path, items="mixup", overrides=["optim.lr=0.5"])
    images = project / "data/tiny/train.csv"
    images.write_text("\n".join(images.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(BadInput):
        command(path, items="mixup")
