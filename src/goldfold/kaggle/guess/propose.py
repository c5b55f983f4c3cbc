"""From a folder to a proposed configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from goldfold.config.schema import Folds
from goldfold.errors import BadInput, some
from goldfold.kaggle.guess.groups import find_groups, id_prefixes
from goldfold.kaggle.guess.labels import Target, TaskGuess, find_metric, find_target, find_task
from goldfold.kaggle.guess.pictures import FIELD, Pattern, Pictures, fill, find_pattern, find_pictures
from goldfold.kaggle.guess.section import Finding, Guess
from goldfold.kaggle.guess.tables import Roles, Table, find_roles, read_tables
from goldfold.metrics import get_metric
from goldfold.submission import decide_format
from goldfold.tasks import encode, make_task

FOLDS = 5


def guess_competition(folder: Path, root: Path, name: str | None = None) -> Guess:
    """Read the CSVs and image names under ``folder`` and propose the sections ``competition`` and ``folds``.

    Paths in it are relative to ``root`` where ``folder`` lies there. No image is decoded. Raises BadInput when there are no
    images or no CSVs, when no CSV lists the images, and when there are no labels.
    """
    if not folder.is_dir():
        raise BadInput(folder, "is not a folder", "name the folder that the competition was unpacked into")
    pictures = find_pictures(folder)
    roles = find_roles(read_tables(folder), pictures, folder)
    place = _relative(folder, root)
    notes = list(roles.notes)

    pattern = _pattern(roles.train, roles, pictures, ("train", "image"))
    used = FIELD.findall(pattern.text)
    candidates = find_groups(roles, [column for column in used if column != roles.id and _is_class(roles, column)])
    target = find_target(roles, used, [group.column for group in candidates])
    task = find_task(roles, target)
    metric, metric_why = find_metric(roles, target, task.name)
    groups = [group for group in candidates if group.column not in target.columns]

    found = [
        _name(folder, name),
        Finding("task", task.name, task.why, task.unsure),
        Finding("metric", metric, metric_why, unsure=True),
        Finding("train_csv", f"{place}/{roles.train.name}", f"{len(roles.train.frame)} rows"),
        *_test_and_sample(roles, place),
        _image_path("image_path", pattern, place, roles.train),
        *_test_images(roles, pictures, pattern, place),
        Finding("id", roles.id, roles.id_why, roles.unsure),
        _target(target, task),
    ]
    if task.separator not in (None, " "):
        found.append(Finding("separator", task.separator, "between the labels of a row"))
    strong = next((group for group in groups if group.strong), None)
    if strong is not None:
        found.append(
            Finding("group", strong.column, f"{strong.why}; rows of one value then stay in one fold", unsure=True)
        )
    notes += [f"'{group.column}' could be a group: {group.why}" for group in groups if group is not strong][:3]
    if not groups and (told := id_prefixes(list(roles.train.frame[roles.id]))):
        notes.append(told)
    found.append(_submission(roles, target, task, metric))
    folds = _folds(roles, target, task, strong is not None)
    notes += _oddities(roles, target, pictures)
    return Guess(folder, tuple(found), tuple(folds), tuple(notes))


def _relative(folder: Path, root: Path) -> str:
    try:
        place = folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return folder.resolve().as_posix()
    return place


def _name(folder: Path, name: str | None) -> Finding:
    if name is not None:
        return Finding("name", name, "as you said")
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "competition"
    return Finding("name", own, "the folder's name; on Kaggle the competition's slug, so that files are found there")


def _pattern(table: Table, roles: Roles, pictures: Pictures, likes: Sequence[str]) -> Pattern:
    found = find_pattern(table.frame, roles.id, pictures, likes)
    if found is None:
        raise BadInput(
            table.path,
            f"no image belongs to its rows ('{roles.id}' is such as {table.frame[roles.id].iloc[0]}, images are such as "
            f"{pictures.example})",
            "make a column that holds the images' names",
        )
    return found


def _image_path(key: str, pattern: Pattern, place: str, table: Table) -> Finding:
    there = f"leads all {pattern.seen} rows of {table.name} to a file"
    if pattern.share < 1:
        missing = round(pattern.seen * (1 - pattern.share))
        there = (
            f"leads {pattern.seen - missing} of {pattern.seen} rows of {table.name} to a file; "
            f"{missing} have none, or one of another name or type"
        )
    if "." not in pattern.text.rsplit("}", 1)[-1]:
        there += "; the column holds the suffix, too"
    return Finding(key, f"{place}/{pattern.text}", there, unsure=pattern.share < 1)


def _test_and_sample(roles: Roles, place: str) -> list[Finding]:
    found = []
    if roles.test is not None:
        found.append(Finding("test_csv", f"{place}/{roles.test.name}", f"{len(roles.test.frame)} rows"))
    elif roles.sample is not None:
        why = f"there is no test table, and the sample submission lists the {len(roles.sample.frame)} ids to predict"
        found.append(Finding("test_csv", f"{place}/{roles.sample.name}", why))
    if roles.sample is not None:
        found.append(Finding("sample_submission", f"{place}/{roles.sample.name}", _columns(roles.sample.frame)))
    return found


def _columns(frame: pd.DataFrame) -> str:
    return f"its columns are {some(frame.columns, 8)}"


def _test_images(roles: Roles, pictures: Pictures, train: Pattern, place: str) -> list[Finding]:
    """The pattern of the test rows, where it is another one."""
    table = roles.test or roles.sample
    if table is None:
        return []
    found = find_pattern(table.frame, roles.id, pictures, ("test", "image"), train.text)
    if found is None:
        why = f"no image here belongs to the rows of {table.name}; in a code competition they may come with the hidden test"
        likely = re.sub(r"train", "test", train.text)
        return [Finding("test_image_path", f"{place}/{likely}", why, unsure=True)]
    if found.text == train.text:
        return []
    made = (
        set(fill(train.text, table.frame)) if set(re.findall(r"{([^:}]+)", train.text)) <= set(table.frame) else set()
    )
    if made and made <= pictures.paths and found.share == 1:
        return []  # the training pattern serves as well
    return [_image_path("test_image_path", found, place, table)]


def _is_class(roles: Roles, column: str) -> bool:
    """Whether a column of the pattern may be the label: the test rows lack it."""
    return roles.test is None or column not in roles.test.frame


def _target(target: Target, task: TaskGuess) -> Finding:
    value = list(target.columns) if len(target.columns) > 1 else target.columns[0]
    if task.name == "multilabel" and task.separator is None:
        value = list(target.columns)
    return Finding("target", value, target.why, target.unsure)


def _submission(roles: Roles, target: Target, task: TaskGuess, metric: str) -> Finding:
    if roles.sample is None:
        return Finding("submission", "auto", "there is no sample submission to go by", unsure=True)
    columns = target.columns if len(target.columns) > 1 or (task.name == "multilabel" and not task.separator) else None
    name: str | list[str] = list(columns) if columns else target.columns[0]
    try:
        made = make_task(task.name, roles.train.frame, name, separator=task.separator or " ", where=roles.train.name)
        encode(made, roles.train.frame, name, roles.train.name)
        shape = decide_format(made, get_metric(metric).needs, roles.sample.frame, roles.id, where=roles.sample.name)
    except BadInput as error:
        return Finding("submission", "auto", f"the sample does not fit what was guessed: {error}", unsure=True)
    said = {
        "label": "a column of labels",
        "probability": f"a column with the probability of '{some(shape.classes)}'",
        "columns": f"a column each for {some(shape.classes, 6)}",
        "string": "a column of texts with the labels of each row",
    }
    return Finding("submission", "auto", f"{roles.sample.name} asks for {said[shape.shape]}")


def _folds(roles: Roles, target: Target, task: TaskGuess, grouped: bool) -> list[Finding]:
    """The scheme that the task and a group need, and fewer folds or bins where rows are few."""
    why = "because of the group" if grouped else "because of several labels a row"
    if task.name == "multilabel":
        return [Finding("scheme", "group_multilabel" if grouped else "multilabel", why)]
    found = [Finding("scheme", "stratified_group", why)] if grouped else []
    rows = len(roles.train.frame)
    if task.name == "regression":
        bins = min(int(Folds.model_fields["bins"].default), rows // FOLDS)
        if len(target.columns) > 1 or bins < 2:
            return [
                Finding("scheme", "group" if grouped else "kfold", "nothing to stratify on: name a column in stratify")
            ]
        if bins < Folds.model_fields["bins"].default:
            found.append(Finding("bins", bins, f"of the target's values: {rows} rows are few"))
        return found
    rarest = int(roles.train.frame[target.columns[0]].value_counts().min())
    if 2 <= rarest < FOLDS:
        found.append(Finding("n", rarest, f"the rarest label has {rarest} rows, and each fold needs one", unsure=True))
    elif rarest < 2:
        found.append(Finding("scheme", "kfold", "a label has a single row; merge it with another", unsure=True))
    return found


def _oddities(roles: Roles, target: Target, pictures: Pictures) -> list[str]:
    notes = []
    if len(target.columns) == 1:
        counts = roles.train.frame[target.columns[0]].value_counts()
        if "" in counts.index:
            notes.append(f"{counts['']} rows have no '{target.columns[0]}'; take them out of a copy of the CSV")
    both = set()
    if roles.test is not None:
        both = set(roles.train.frame[roles.id]) & set(roles.test.frame[roles.id])
    if both:
        notes.append(f"{len(both)} ids are in train and test ({some(sorted(both))}); `goldfold check` refuses that")
    return notes
