from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from goldfold.config import (
    Config,
    changed_keys,
    config_from_dict,
    dump_yaml,
    is_pipeline,
    json_schemas,
    load_config,
    load_pipeline,
    read_yaml,
)
from goldfold.errors import BadInput

COMPETITION = """
competition:
  name: cats
  task: multiclass
  metric: macro_f1
  train_csv: train.csv
  image_path: images/{id}.png
"""


UNLABELLED = "competition.unlabelled=[{csv: more.csv, image_path: 'more/{id}.png'}]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(COMPETITION + "train: {epochs: 9, seeds: [1, 2], ema: {decay: 0.9}}\n")
    return tmp_path


def write(folder: Path, text: str, name: str = "exp.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path, *overrides: str, load: Any = load_config) -> str:
    with pytest.raises(BadInput) as caught:
        load(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{path.parent}/", "")


class TestMerging:
    def test_deep_merge_keeps_siblings_and_replaces_lists(self, folder: Path) -> None:
        path = write(folder, "extends: base.yaml\ntrain: {batch_size: 8, seeds: [5], ema: {warmup: false}}\n")
        train = load_config(path).train
        assert (train.epochs, train.batch_size, train.seeds) == (9, 8, (5,))
        assert (train.ema.decay, train.ema.warmup) == (0.9, False)

    def test_a_chain_of_parents_in_other_folders(self, folder: Path) -> None:
        write(folder, "extends: ../base.yaml\ntrain: {epochs: 3}\nmodel: {backbone: a}\n", "cats/mid.yaml")
        path = write(folder, "extends: mid.yaml\nmodel: {backbone: b}\n", "cats/leaf.yaml")
        config = load_config(path)
        assert (config.train.epochs, config.train.ema.decay, config.model.backbone) == (3, 0.9, "b")
        assert config.competition.name == "cats"

    def test_later_parents_win(self, folder: Path) -> None:
        write(folder, "train: {epochs: 1, batch_size: 2}\n", "one.yaml")
        write(folder, "train: {epochs: 4}\n", "two.yaml")
        train = load_config(write(folder, "extends: [base.yaml, one.yaml, two.yaml]\n")).train
        assert (train.epochs, train.batch_size) == (4, 2)

    def test_overrides_come_last(self, folder: Path) -> None:
        path = write(folder, "extends: base.yaml\noptim: {lr: 3e-3}\n")
        config = load_config(path, ["optim.lr=1e-4", "train.seeds=[7]", "model.weights=null", "folds.stratify=[sex]"])
        assert (config.optim.lr, config.train.seeds, config.model.weights) == (1e-4, (7,), None)
        assert config.folds.stratify == ("sex",)
        assert config.optim.weight_decay == 0.02

    def test_an_interpolation_sees_the_merged_values(self, folder: Path) -> None:
        path = write(folder, "extends: base.yaml\ntta: {batch_size: '${train.epochs}'}\n")
        assert load_config(path).tta.batch_size == 9

    def test_names(self, folder: Path) -> None:
        assert load_config(write(folder, "extends: base.yaml\n", "lite 0.yaml")).name == "cats-lite-0"
        assert load_config(write(folder, "extends: base.yaml\nname: mine\n")).name == "mine"

    def test_cycles_and_missing_parents(self, folder: Path) -> None:
        write(folder, "extends: b.yaml\n", "a.yaml")
        path = write(folder, "extends: a.yaml\n", "b.yaml")
        assert "extends itself; the chain is b.yaml -> a.yaml -> b.yaml" in refused(path)
        assert "exp.yaml: extends 'no.yaml', which does not exist" in refused(write(folder, "extends: no.yaml\n"))
        assert "'extends' must be a file name" in refused(write(folder, "extends: {a: b}\n"))
        assert "does not exist" in refused(folder / "none.yaml")


class TestYaml:
    def test_floats_without_a_dot(self, folder: Path) -> None:
        path = write(folder, COMPETITION + "optim: {lr: 1e-4, weight_decay: 5E-2}\n")
        optim = load_config(path).optim
        assert (optim.lr, optim.weight_decay) == (1e-4, 0.05)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a: 1\ntrain:\n  epochs: 010\n", "exp.yaml:3: YAML reads 010 as an octal number; write it in quotes"),
            ("a: 1\nno: 3\n", "exp.yaml:2: YAML does not read the key 'no' as text; write 'no' in quotes"),
            ("train:\n  off: 3\n", "exp.yaml:2: YAML does not read the key 'off' as text"),
            ("1: 3\n", "exp.yaml:1: YAML does not read the key '1' as text"),
            ("train:\n  epochs: 1\n  epochs: 2\n", "exp.yaml:3: the key 'epochs' stands twice"),
            ("train: {}\nfolds: {}\ntrain: {}\n", "exp.yaml:3: the key 'train' stands twice"),
            ("tta:\n  views:\n    - {A: {p: 1, p: 2}}\n", "exp.yaml:3: the key 'p' stands twice"),
            ("a: [1\n", "exp.yaml: not valid YAML"),
            ("- a\n", "exp.yaml: must be a mapping of sections to keys"),
            ("a: !!python/object:os.system x\n", "exp.yaml: not valid YAML"),
            ("name: ${nope}\n", "exp.yaml: cannot be merged"),
        ],
    )
    def test_traps(self, folder: Path, text: str, says: str) -> None:
        assert says in refused(write(folder, text))

    def test_the_key_on_needs_no_quotes(self, folder: Path) -> None:
        path = write(folder, COMPETITION + "augment: {on: device}\ntrain: {epochs: 1}\n")
        assert load_config(path).augment.on == "device"
        phases = "train.phases=[{epochs: 1, augment: {on: host}}]"
        assert load_config(path, [phases]).train.phases[0].augment == {"on": "host"}

    def test_quoted_is_fine(self, folder: Path) -> None:
        assert read_yaml(write(folder, "'no': '010'\n")) == {"no": "010"}


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("optim: {lrr: 1}", "exp.yaml: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
            ("trian: {epochs: 3}", "exp.yaml: unknown key 'trian'; did you mean 'train'?"),
            ("train: {weight_decay: 3}", "unknown key 'train.weight_decay'; did you mean 'optim.weight_decay'?"),
            ("train: {ema: {decai: 1}}", "unknown key 'train.ema.decai'; did you mean 'train.ema.decay'?"),
            ("zzzz: 3", "exp.yaml: unknown key 'zzzz'"),
            ("augment: {str: 3}", "unknown key 'augment.str'"),
            ("train: {epochs: 0}", "'train.epochs': Input should be greater than 0, got 0"),
            ("train: {epochs: many}", "'train.epochs': Input should be a valid integer"),
            ("train: {epochs: 0, batch_size: 0}", "(and 1 more problem)"),
            ("folds: {scheme: foo}", "'folds.scheme': Input should be 'kfold', 'stratified'"),
            ("folds: {scheme: holdout}", "'folds': folds.column must name the CSV column"),
            ("folds: 3", "'folds': should be a section of keys, got 3"),
            ("folds:", "'folds': should be a section of keys, got None"),
            ("name: a b", "'name': String should match pattern"),
            ("augment: {train: 3}", "'augment.train': should be a list, got 3"),
            ("augment: {train: [{Blur: 3}]}", "'augment.train.0.Blur': should be a section of keys, got 3"),
            ("model: {mean: [0.5, x]}", "'model.mean.1': Input should be a valid number"),
            (
                "tta: {views: foo}",
                "'tta.views': Input should be 'none', 'flip', 'flips', 'd4', 'five-crop', 'ten-crop', 'scales' or 'auto'",
            ),
            ("tta: {views: [3]}", "'tta.views.0': should be a section of keys, got 3"),
            ("teacher: {runs: [a]}", "'teacher': teacher.runs needs teacher.pseudo.labels or teacher.distill.weight"),
        ],
    )
    def test_are_named(self, folder: Path, text: str, says: str) -> None:
        found = refused(write(folder, f"extends: base.yaml\n{text}\n"))
        assert says in found
        assert found.startswith("exp.yaml: ")
        assert ("more problem" in found) == ("more problem" in says)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("target: 3", "'competition.target': Input should be a valid string, got 3; write it in quotes"),
            ("target: [a, 3]", "'competition.target.1': Input should be a valid string, got 3; write it in quotes"),
            ("classes: [0]", "'competition.classes.0': Input should be a valid string, got 0; write it in quotes"),
            ("task: multi", "'competition.task': Input should be 'binary', 'multiclass'"),
        ],
    )
    def test_in_the_competition(self, folder: Path, text: str, says: str) -> None:
        assert says in refused(write(folder, f"extends: base.yaml\ncompetition: {{{text}}}\n"))

    def test_a_missing_key(self, folder: Path) -> None:
        assert "the key 'competition' is missing" in refused(write(folder, ""))
        text = COMPETITION.replace("  metric: macro_f1\n", "")
        assert refused(write(folder, text)) == "exp.yaml: the key 'competition.metric' is missing"

    def test_the_layer_that_holds_the_mistake_is_named(self, folder: Path) -> None:
        write(folder, COMPETITION + "optim: {lrr: 1}\ntrain: {epochs: 0}\n", "base.yaml")
        path = write(folder, "extends: base.yaml\noptim: {lr: 1}\n")
        assert refused(path).startswith("base.yaml: unknown key 'optim.lrr'")
        fine = write(folder, "extends: base.yaml\ntrain: {epochs: -1}\n", "other.yaml")
        (folder / "base.yaml").write_text(COMPETITION)
        assert refused(fine).startswith("other.yaml: 'train.epochs'")
        assert refused(fine, "train.epochs=-2").startswith("command line: 'train.epochs'")
        assert refused(fine, "train.epochs=1", "optim.lrr=2").startswith("command line: unknown key 'optim.lrr'")

    @pytest.mark.parametrize("override", ["epochs", "=3", "--lr=3", "a.b=[1"])
    def test_overrides_that_are_none(self, folder: Path, override: str) -> None:
        assert "command line: " in refused(write(folder, COMPETITION), override)


class TestConfig:
    def test_is_frozen(self, folder: Path) -> None:
        config = load_config(folder / "base.yaml")
        with pytest.raises(ValidationError):
            config.name = "x"  # type: ignore[misc]
        with pytest.raises(ValidationError):
            config.train.epochs = 3  # type: ignore[misc]

    def test_dumps_and_loads_back_equal(self, folder: Path) -> None:
        config = load_config(folder / "base.yaml", ["tta.views=[{HorizontalFlip: null}]", "optim.lr=1e-7"])
        text = dump_yaml(config)
        assert config_from_dict(yaml.safe_load(text), "config.yaml") == config
        assert load_config(write(folder, text)) == config

    def test_a_stored_configuration_with_a_mistake(self) -> None:
        with pytest.raises(BadInput, match=r"run/config\.yaml: the key 'competition' is missing"):
            config_from_dict({}, "run/config.yaml")

    def test_changed_keys(self) -> None:
        old = {"a": 1, "b": {"c": 1, "d": [1]}, "e": 1}
        new = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "f": 1}
        assert changed_keys(old, new) == ["b.c", "b.d", "e", "f"]
        assert changed_keys(old, old) == []


class TestTeacher:
    """Keys of rounds that would do nothing, or something else than they say."""

    PSEUDO = ("teacher.runs=[a]", "teacher.pseudo.labels=soft", "competition.test_csv=test.csv")
    HARD = ("teacher.runs=[a]", "teacher.pseudo.labels=hard", "competition.test_csv=test.csv")
    DISTIL = ("teacher.runs=[a]", "teacher.distill.weight=0.5")
    ONLINE = ("teacher.runs=[a]", "teacher.distill.features=1", "teacher.distill.how=online")
    CACHED = ("model.freeze={stages: 1, cache: true}", "augment.preset=none")
    REGRESSION = ("competition.task=regression", "competition.metric=rmse")

    @pytest.mark.parametrize(
        "settings",
        [
            (*PSEUDO, "teacher.pseudo.min_prob=0.9", "teacher.pseudo.power=2", "teacher.pseudo.trim=0.1"),
            (*PSEUDO, "teacher.pseudo.min_prob={a: 0.5}", "teacher.pseudo.top_k=3", "teacher.pseudo.margin=0.1"),
            (*PSEUDO, "teacher.pseudo.cool_down=8", "teacher.pseudo.sampling_prob=0.5", "teacher.leaky=true"),
            (*HARD, "teacher.pseudo.weighting=confidence", "teacher.pseudo.weight=0.5"),
            (*PSEUDO, *DISTIL, "teacher.distill.temperature=2", "teacher.distill.how=cross_fitted"),
            (*DISTIL, "teacher.distill.how=cross_fitted", "teacher.distill.inner=5"),
            (*DISTIL, "teacher.distill.how=online", "teacher.distill.features=1", "teacher.leaky=true"),
            ONLINE,
            (*DISTIL, "teacher.distill.how=online", *CACHED),
            (*PSEUDO, *REGRESSION, "teacher.pseudo.margin=0.1", "teacher.pseudo.weight=0.5"),
            ("teacher.runs=[a]", "teacher.pseudo={labels: soft, images: unlabelled}", UNLABELLED),
            ("teacher.runs=[a]", "teacher.pseudo={labels: soft}", UNLABELLED),
            (*PSEUDO, "teacher.pseudo.images=test"),
        ],
    )
    def test_what_has_an_effect_is_taken(self, folder: Path, settings: tuple[str, ...]) -> None:
        load_config(folder / "base.yaml", settings)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("images", "test"),
            ("min_prob", "0.9"),
            ("min_prob", "{cat: 0.9}"),
            ("top_k", "10"),
            ("margin", "0.1"),
            ("power", "2"),
            ("trim", "0.1"),
            ("weight", "0.5"),
            ("weighting", "confidence"),
            ("sampling_prob", "0.5"),
            ("cool_down", "1"),
        ],
    )
    def test_a_key_of_pseudo_labels_without_them(self, folder: Path, key: str, value: str) -> None:
        for teachers in ((), self.DISTIL):
            found = refused(folder / "base.yaml", *teachers, f"teacher.pseudo.{key}={value}")
            assert f"teacher.pseudo.{key} does nothing without teacher.pseudo.labels; leave it out, or set" in found

    def test_every_key_of_pseudo_labels_is_guarded(self) -> None:
        """A new key needs a line in the test above."""
        from goldfold.config.schema import Pseudo

        tested = {mark[0] for mark in self.test_a_key_of_pseudo_labels_without_them.pytestmark[0].args[1]}  # type: ignore[attr-defined]
        assert tested == set(Pseudo.model_fields) - {"labels"}

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            (("teacher.distill.how=online",), "teacher.distill.how does nothing without teacher.distill.weight above"),
            (
                ("teacher.distill.temperature=2",),
                "teacher.distill.temperature does nothing without teacher.distill.wei",
            ),
            ((*ONLINE, "teacher.distill.temperature=2"), "teacher.distill.temperature does nothing without"),
            ((*PSEUDO, "teacher.distill.temperature=2"), "teacher.distill.temperature does nothing without"),
            (
                ("teacher.distill.inner=5",),
                "teacher.distill.inner does nothing without teacher.distill.how cross_fitted",
            ),
            ((*DISTIL, "teacher.distill.inner=5"), "teacher.distill.inner does nothing without teacher.distill.how"),
            (
                (*DISTIL, "teacher.distill.features=1"),
                "teacher.distill.features does nothing without teacher.distill.how",
            ),
            ((*ONLINE, *CACHED), "teacher.distill.features needs the images, and model.freeze.cache trains on stored"),
            (("teacher.leaky=true",), "teacher.leaky does nothing without teacher.runs"),
            (
                (*DISTIL, "teacher.distill.how=cross_fitted", "teacher.leaky=true"),
                "teacher.distill.how 'cross_fitted' trains teachers that never saw a row, and teacher.leaky is for",
            ),
            ((*HARD, "teacher.pseudo.power=2"), "teacher.pseudo.power does nothing without teacher.pseudo.labels soft"),
            ((*HARD, "teacher.pseudo.trim=0.1"), "teacher.pseudo.trim does nothing without teacher.pseudo.labels soft"),
            (
                (*PSEUDO, "teacher.pseudo.cool_down=9"),
                "teacher.pseudo.cool_down 9 leaves no epoch with pseudo-labels; make it less than train.epochs (9)",
            ),
            (
                (*PSEUDO, "teacher.pseudo.cool_down=1", "train.early_stopping.patience=2"),
                "teacher.pseudo.cool_down needs the last epochs; set train.early_stopping.patience to 0",
            ),
            ((*PSEUDO, *REGRESSION, "teacher.pseudo.min_prob=0.9"), "teacher.pseudo.min_prob is for probabilities"),
            ((*PSEUDO, *REGRESSION, "teacher.pseudo.power=2"), "teacher.pseudo.power is for probabilities"),
            ((*PSEUDO, *REGRESSION, "teacher.pseudo.trim=0.1"), "teacher.pseudo.trim is for probabilities"),
            ((*PSEUDO, *REGRESSION, "teacher.pseudo.weighting=confidence"), "teacher.pseudo.weighting is for prob"),
            ((*HARD, *REGRESSION), "teacher.pseudo.labels 'hard' needs classes, and a regression has none"),
            ((*DISTIL, *REGRESSION, "teacher.distill.temperature=2"), "teacher.distill.temperature is for prob"),
            (
                PSEUDO[:2],
                "teacher.pseudo.images 'all' has no images to label; give competition.test_csv or competition",
            ),
            (
                (*PSEUDO, "teacher.pseudo.images=unlabelled"),
                "teacher.pseudo.images 'unlabelled' has no images to label; give competition.unlabelled",
            ),
            (
                ("teacher.runs=[a]", "teacher.pseudo={labels: soft, images: test}", UNLABELLED),
                "teacher.pseudo.images 'test' has no images to label; give competition.test_csv",
            ),
        ],
    )
    def test_what_has_none_is_refused(self, folder: Path, settings: tuple[str, ...], says: str) -> None:
        assert says in refused(folder / "base.yaml", *settings)


class TestPipeline:
    def load(self, folder: Path, *rounds: str) -> Any:
        return load_pipeline(self.write(folder, *rounds))

    def write(self, folder: Path, *rounds: str) -> Path:
        return write(folder, "rounds:\n" + "".join(f"  - {{{text}}}\n" for text in rounds))

    def test_rounds(self, folder: Path) -> None:
        pipeline = self.load(
            folder,
            "kind: train, experiment: a.yaml, set: {train.epochs: 3}",
            "kind: pseudo_label, experiment: a.yaml, name: s, teachers: [a], min_prob: 0.9",
            "kind: distill, experiment: a.yaml, name: d, teachers: [a]",
            "kind: ensemble, name: e, members: [a, s, d]",
            "kind: submit, source: e",
        )
        assert [item.kind for item in pipeline.rounds] == ["train", "pseudo_label", "distill", "ensemble", "submit"]
        assert pipeline.name == f"{folder.name}-exp".strip("-.")
        assert is_pipeline(folder / "exp.yaml")
        assert not is_pipeline(folder / "base.yaml")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("kind: pseudo_label, experiment: a", "the key 'rounds.1.teachers' is missing"),
            ("kind: train", "the key 'rounds.1.experiment' is missing"),
            ("kind: distill, experiment: a, teachers: [a], weight: 2", "'rounds.1.weight': Input should be less"),
            ("kind: distill, experiment: a, teachers: []", "'rounds.1.teachers': the list is too short"),
            ("kind: distill, experiment: a, teachers: a", "'rounds.1.teachers': should be a list, got 'a'"),
            ("kind: ensemble, name: e, members: [a, 3]", "'rounds.1.members.1': Input should be a valid string, got 3"),
            ("kind: train, experiment: a, nam: b", "unknown key 'rounds.1.nam'; did you mean 'name'?"),
            ("kind: train, experiment: a, train: 3", "unknown key 'rounds.1.train'"),
            ("kind: trane, experiment: a", "'rounds.1.kind': should be one of 'train', 'pseudo_label'"),
            ("experiment: a", "the key 'rounds.1.kind' is missing"),
        ],
    )
    def test_mistakes_are_named_by_their_keys(self, folder: Path, text: str, says: str) -> None:
        path = self.write(folder, "kind: train, experiment: a", text)
        found = refused(path, load=load_pipeline)
        assert found.startswith(f"exp.yaml: {says}")
        assert "more problem" not in found

    def test_a_misspelt_key_comes_before_the_missing_one(self, folder: Path) -> None:
        path = self.write(folder, "kind: distill, experiment: a, techers: [b]")
        found = refused(path, load=load_pipeline)
        assert "unknown key 'rounds.0.techers' (and 1 more problem); did you mean 'teachers'?" in found

    def test_no_rounds(self, folder: Path) -> None:
        assert "'rounds': the list is too short" in refused(write(folder, "rounds: []\n"), load=load_pipeline)
        assert "the key 'rounds' is missing" in refused(write(folder, "name: x\n"), load=load_pipeline)


class TestViewsAlone:
    """``tta: auto`` is ``tta: {views: auto}``, wherever a configuration is read."""

    @pytest.mark.parametrize(
        ("parent", "child", "overrides", "expected"),
        [
            ("", "tta: auto", [], ("auto", None)),
            ("tta: {size: 256}", "tta: d4", [], ("d4", 256)),
            ("tta: d4", "tta: {size: 256}", [], ("d4", 256)),
            ("tta: {views: auto, size: 256}", "tta: none", [], ("none", 256)),
            ("tta: d4", "", ["tta.size=256"], ("d4", 256)),
            ("tta: {size: 256}", "", ["tta=scales"], ("scales", 256)),
            ("", "", ['tta="auto"', "tta.size=256"], ("auto", 256)),
            ("", "", ["tta.size=256", "tta=d4"], ("d4", 256)),
        ],
    )
    def test_merges_with_the_sections_other_keys(
        self, parent: str, child: str, overrides: list[str], expected: tuple[str, int | None], folder: Path
    ) -> None:
        write(folder, f"{COMPETITION}{parent}\n", "parent.yaml")
        config = load_config(write(folder, f"extends: parent.yaml\n{child}\n"), overrides)
        assert (config.tta.views, config.tta.size) == expected

    def test_of_a_stored_configuration(self, folder: Path) -> None:
        values = load_config(folder / "base.yaml").model_dump(mode="json")
        assert config_from_dict({**values, "tta": "d4"}, "x").tta.views == "d4"

    def test_a_name_that_is_none_is_named(self, folder: Path) -> None:
        assert refused(write(folder, f"{COMPETITION}tta: foo\n")).startswith("exp.yaml: 'tta.views': Input should be")
        assert refused(write(folder, COMPETITION), "tta=foo").startswith("command line: 'tta.views': ")
        assert "'tta': should be a section of keys, got 3" in refused(write(folder, f"{COMPETITION}tta: 3\n"))

    def test_is_in_the_schema(self) -> None:
        names, section = json_schemas()["experiment.schema.json"]["properties"]["tta"]["anyOf"]
        assert {"auto", "none", "d4"} <= set(names["enum"])
        assert section == {"$ref": "#/$defs/Tta"}


class TestJsonSchema:
    def test_every_key_has_a_description(self) -> None:
        experiment = json_schemas()["experiment.schema.json"]
        json.dumps(experiment)
        assert "description" in experiment["properties"]["extends"]
        for name, section in experiment["$defs"].items():
            for key, value in section["properties"].items():
                assert "description" in value or "$ref" in value, f"{name}.{key}"
        assert experiment["$defs"]["Optim"]["properties"]["lr"]["description"] == "Peak learning rate"

    def test_a_file_of_deltas_is_valid(self) -> None:
        experiment = json_schemas()["experiment.schema.json"]
        assert "required" not in experiment
        assert all("required" not in section for section in experiment["$defs"].values())
        assert experiment["additionalProperties"] is False

    def test_the_designs_sections_are_there(self) -> None:
        sections = "competition folds input augment mix model loss optim schedule train balance teacher tta tracking"
        assert set(sections.split()) <= set(Config.model_fields)
        assert "rounds" in json_schemas()["pipeline.schema.json"]["properties"]


def test_a_geometric_mean_of_regression_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "competition: {name: c, task: regression, metric: rmse, train_csv: t.csv, image_path: 'i/{id}.png'}\n"
        "tta: {merge: gmean}\n"
    )
    with pytest.raises(BadInput, match=r"c\.yaml: tta\.merge 'gmean' is for probabilities"):
        load_config(path)
    assert load_config(path, ["tta.merge=mean"]).tta.merge == "mean"
