"""Columns whose values should not be both trained on and validated on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from goldfold.kaggle.guess.tables import Roles

GROUP_NAMES = re.compile(
    r"(patient|subject|person|individual|donor|animal|site|hospital|clinic|institution|cent(er|re)|scanner|camera|device|"
    r"location|scene|series|study|slide|wsi|specimen|video|clip|sequence|session|plot|farm|orchard|seller|user|author|"
    r"group|family|batch|plate|experiment|lesion|case)",
    re.IGNORECASE,
)
FEWEST = 5
"""Groups that a column needs: as many as folds."""


@dataclass(frozen=True)
class Group:
    """A column of groups. ``strong``: it should not cross folds; else it is only worth a thought."""

    column: str
    why: str
    strong: bool


def find_groups(roles: Roles, taken: Sequence[str]) -> list[Group]:
    """Candidates, the best first. ``taken``: columns that are something else."""
    frame, found = roles.train.frame, []
    for name in map(str, frame.columns):
        values = frame[name]
        count = values.nunique()
        if name == roles.id or name in taken or not FEWEST <= count <= 0.9 * len(values):
            continue
        named = bool(GROUP_NAMES.search(name))
        told = f"{count} values over {len(values)} rows"
        shared: int | None = None
        if roles.test is not None and name in roles.test.frame:
            shared = len(set(values) & set(roles.test.frame[name]))
        if shared:
            if named:
                found.append(Group(name, f"{told}, but the test rows share {shared} of them, so folds may too", False))
        elif named:
            apart = f"; none of them is in {roles.test.name}" if shared == 0 and roles.test is not None else ""
            found.append(Group(name, f"{told}, and by its name rows of one value belong together{apart}", True))
        elif shared == 0 and count < 0.7 * len(values) and roles.test is not None:
            found.append(Group(name, f"{told}, and none of them is in {roles.test.name}", False))
    return sorted(found, key=lambda group: (group.strong, "id" in group.column.lower()), reverse=True)


def id_prefixes(ids: Sequence[str]) -> str | None:
    """What to say of ids such as p12_3, whose beginnings repeat; None when they do not."""
    for mark in "_-":
        heads = [name.split(mark)[0] for name in ids if mark in name]
        count = len(set(heads))
        if len(heads) == len(ids) and FEWEST <= count <= 0.6 * len(ids):
            return (
                f"ids share their beginnings ('{heads[0]}{mark}…': {count} of them over {len(ids)} rows); if these are patients "
                "or places, make a column of them and name it as group"
            )
    return None
