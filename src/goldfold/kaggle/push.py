"""``goldfold push``: a pack and its kernel to Kaggle. The data set first, the kernel once Kaggle has processed it.

Kaggle's client ends with 0 when Kaggle refuses something, and when it pushes a kernel without a source that it does not
know, so what it says is read too.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.kaggle import manifest
from goldfold.kaggle.metadata import KERNEL_FILE, NEW_SLUG, NO_OWNER, check_dataset, check_kernel, read_dataset
from goldfold.kaggle.pack import NAME, Pack, read_pack
from goldfold.kaggle.upload import exists, find_owner, last_line, run_client, upload_command, upload_dataset
from goldfold.paths import Workspace
from goldfold.progress import say, warn

TWO_T4 = "NvidiaTeslaT4"
"""Kaggle's name of the accelerator "GPU T4 x2". Without a name it may give a GPU that torch does not support any more."""

POLL_SECONDS = 10.0


@dataclass(frozen=True)
class Delivery:
    """What is pushed, after every check that can be made here.

    ``dataset``, ``kernel``: both metadata files as Kaggle will get them; the owner may be unknown (``NO_OWNER``).
    ``code``: the kernel's file. ``stage``: the folder from which it is pushed.
    """

    pack: Pack
    dataset: dict[str, Any]
    kernel: dict[str, Any]
    code: Path
    stage: Path

    @property
    def notes(self) -> str:
        return f"{self.pack.source}, Goldfold {self.pack.goldfold}"

    @property
    def kernel_command(self) -> list[str]:
        return ["kernels", "push", "-p", str(self.stage)]

    def commands(self, known: bool | None, *, kernel_only: bool) -> list[tuple[str, ...]]:
        """The client's commands in order. ``known``: whether Kaggle has the data set; None: it has not been asked."""
        uploads = [upload_command(self.pack.folder, self.notes, known=way) for way in (False, True)]
        chosen = [] if kernel_only else uploads if known is None else [uploads[known]]
        wait = ["datasets", "status", self.dataset["id"]]
        return [("kaggle", *command) for command in (*chosen, wait, self.kernel_command)]


def find_pack(name: str, workspace: Workspace) -> Path:
    """A pack's folder, by its path or by the run or ensemble that it was exported from. Raises BadInput."""
    folder = workspace.root / name
    if folder.is_dir() and (folder / NAME).is_file():
        return folder
    found = [
        path.parent
        for pattern in (f"*/{NAME}", f"*/*/{NAME}")
        for path in sorted(workspace.root.glob(pattern))
        if files.read_json(path).get("source") == name
    ]
    if len(found) > 1:
        raise BadInput(name, f"several packs hold it: {some(found)}", "name one by its folder")
    if not found:
        told = "this folder is no pack" if folder.is_dir() else "no pack of it lies here"
        raise BadInput(
            name, told, f"write one: goldfold export {'NAME' if folder.is_dir() else name} --to packs/{name}"
        )
    return found[0]


def prepare(folder: Path, kernel: Path, workspace: Workspace, owner: str | None) -> Delivery:
    """Read and check all that will be pushed: the pack's files and its metadata, the kernel in the folder ``kernel``.

    ``owner`` takes the place of ``NO_OWNER``. Raises BadInput for whatever Kaggle or the kernel would refuse, and for a
    pack of a run or an ensemble that has changed since.
    """
    pack = read_pack(folder)
    refuse_stale(pack, workspace)
    manifest.verify(folder)
    dataset = read_dataset(folder)
    if dataset["id"].startswith(f"{NO_OWNER}/") and owner is not None:
        dataset["id"] = f"{owner}/{dataset['id'].split('/')[1]}"
    check_dataset(dataset, folder)
    where = kernel / KERNEL_FILE
    filled = fill_kernel(files.read_json(where), dataset["id"], pack.competition.slug, where)
    code = kernel / filled["code_file"]
    if Path(filled["code_file"]).name != filled["code_file"] or not code.is_file():
        raise BadInput(where, f"'code_file' is '{filled['code_file']}'", f"name a file of {kernel}")
    return Delivery(pack, dataset, filled, code, workspace.cache() / "kernels" / filled["id"].split("/")[1])


def fill_kernel(values: Any, dataset: str, competition: str, where: object) -> dict[str, Any]:
    """kernel-metadata.json with what belongs to this pack; raises BadInput where the result breaks a rule of Kaggle's.

    The pack takes the place of the first of ``dataset_sources``, and of all whose owner is not known. The internet is off,
    whatever the file says: a code competition takes no other kernel.
    """
    if not isinstance(values, dict) or not isinstance(values.get("id"), str):
        check_kernel(values, where)
    sources = values.get("dataset_sources")
    others = sources[1:] if isinstance(sources, list) else []
    if str(values.get("enable_internet", False)).lower() != "false":
        warn(
            f"{where}: enable_internet is {values['enable_internet']}; a code competition takes no such kernel, so it is off"
        )
    owner, _, slug = values["id"].partition("/")
    filled = {
        **values,
        "id": f"{dataset.split('/')[0] if owner == NO_OWNER else owner}/{slug}",
        "dataset_sources": [dataset, *(item for item in others if not _is_placeholder(item) and item != dataset)],
        "competition_sources": [competition],
        "enable_internet": False,
        "is_private": values.get("is_private", True),
    }
    if str(filled.get("enable_gpu", False)).lower() == "true":
        filled["machine_shape"] = filled.get("machine_shape") or TWO_T4
    check_kernel(filled, where)
    return filled


def refuse_stale(pack: Pack, workspace: Workspace) -> None:
    """Raises BadInput where the run or ensemble of a pack lies here and is not what was exported.

    What does not lie here any more is not compared.
    """
    mend = f"export it again: goldfold export {pack.source} --to {pack.folder}"
    blend = workspace.ensemble(pack.source) / "ensemble.json"
    packed = pack.folder / "ensemble.json"
    if pack.kind == "ensemble" and blend.is_file() and files.sha256_file(blend) != files.sha256_file(packed):
        raise BadInput(pack.folder, f"the ensemble '{pack.source}' has changed since it was exported", mend)
    for member in pack.members:
        for fold in member.folds:
            now = workspace.run(member.name).folder / Path(fold.bundle).name / "bundle.json"
            then = pack.folder / fold.bundle / "bundle.json"
            if now.is_file() and files.read_json(now)["weights_sha256"] != files.read_json(then)["weights_sha256"]:
                raise BadInput(pack.folder, f"'{member.name}' was trained anew since it was exported", mend)


def ask(delivery: Delivery) -> tuple[bool | None, str]:
    """Whether Kaggle knows the data set, for a dry run: None where it cannot be asked, and why."""
    if _is_placeholder(delivery.dataset["id"]):
        return None, "its owner is known once Kaggle's client has a token"
    try:
        find_owner()
        known = exists(delivery.dataset["id"])
    except GoldfoldError as error:
        return None, str(error)
    return known, "a new version of it" if known else "a new data set"


def push(delivery: Delivery, *, kernel_only: bool = False, minutes: float = 60.0, again: str = "") -> str:
    """Upload the data set, wait until Kaggle has processed it, push the kernel; returns the client's last line.

    ``again``: the command that goes on with the kernel, for messages. Raises BadInput before anything is uploaded, and
    GoldfoldError, which says what is done, when a step fails or processing takes more than ``minutes``.
    """
    find_owner()
    dataset = delivery.dataset["id"]
    known = exists(dataset)
    if kernel_only and not known:
        raise BadInput(dataset, "Kaggle has no such data set", "push without --kernel-only")
    if not known and len(dataset.split("/")[1]) < NEW_SLUG:
        raise BadInput(dataset, f"a new data set needs a slug of at least {NEW_SLUG} characters", "change its metadata")
    _stage(delivery)
    before = -1
    if not kernel_only:
        before = (_state(dataset).version or 0) if known else 0
        say(f"data set {dataset}: uploading {delivery.pack.folder}")
        say(upload_dataset(delivery.pack.folder, delivery.notes))
    done = "the data set lies on Kaggle" if kernel_only else "the data set is uploaded"
    try:
        _wait(dataset, before, minutes)
        done += " and processed"
        return _push_kernel(delivery)
    except GoldfoldError as error:
        raise GoldfoldError(f"{error} ({done}; {again} goes on from there)") from error


@dataclass(frozen=True)
class _State:
    """What Kaggle says of a data set: its latest version's ``status``; ``version`` is None from an older client."""

    status: str
    version: int | None


def _state(dataset: str) -> _State:
    """Raises GoldfoldError when Kaggle cannot be asked."""
    found = run_client("datasets", "status", dataset, "--format", "json")
    if found.returncode == 2:  # an older client has no --format
        found = run_client("datasets", "status", dataset)
        if found.returncode == 0:
            return _State(last_line(found).lower(), None)
    if found.returncode == 0:
        try:
            values = json.loads(found.stdout)
            return _State(str(values["status"]).lower(), int(values["current_version_number"]))
        except (ValueError, KeyError, TypeError):
            pass
    raise GoldfoldError(f"kaggle datasets status {dataset} failed: {last_line(found)}")


def _wait(dataset: str, after: int, minutes: float) -> None:
    """Until a version newer than ``after`` is processed (-1: until any is). Raises GoldfoldError."""
    deadline = time.monotonic() + 60 * minutes
    said, in_a_row = "", 0
    while True:
        try:
            state = _state(dataset)
            told = state.status
        except GoldfoldError as error:  # a data set that was made just now may not be there yet
            state, told = _State("", None), str(error)
        if told != said:
            say(f"data set {dataset}: {told}")
            said = told
        if state.status in ("failed", "deleted"):
            raise GoldfoldError(f"data set {dataset}: Kaggle says '{state.status}' of its new version")
        # Right after an upload the version before is still the one that is ready. An older client tells no versions, so
        # that two answers have to do.
        in_a_row = in_a_row + 1 if state.status == "ready" else 0
        if in_a_row > (0 if after < 0 else 1) if state.version is None else in_a_row and state.version > after:
            return
        if time.monotonic() + POLL_SECONDS > deadline:
            raise GoldfoldError(f"data set {dataset}: not processed after {minutes:g} minutes ({said})")
        time.sleep(POLL_SECONDS)


def _stage(delivery: Delivery) -> None:
    """The folder from which the kernel is pushed: its file and the filled metadata."""
    files.write_json(delivery.stage / KERNEL_FILE, delivery.kernel)
    files.write_atomic(delivery.stage / delivery.code.name, lambda path: _copy(delivery.code, path))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _push_kernel(delivery: Delivery) -> str:
    kernel = delivery.kernel["id"]
    say(f"kernel {kernel}: pushing {delivery.code}")
    found = run_client(*delivery.kernel_command)
    text = f"{found.stdout}\n{found.stderr}"
    if found.returncode or "successfully pushed" not in text:
        raise GoldfoldError(f"kaggle kernels push of {kernel} failed: {last_line(found)}")
    refused = list(_refused(text))
    if refused:
        raise GoldfoldError(f"kernel {kernel}: pushed, but Kaggle did not attach {some(refused)}, so it cannot predict")
    for line in text.splitlines():
        if "not valid tags" in line:
            warn(line)
    return next(line for line in text.splitlines() if "successfully pushed" in line)


def _refused(text: str) -> Iterator[str]:
    """The sources that Kaggle's client says it could not add."""
    for kind, names in re.findall(
        r"not valid (dataset|competition|kernel) sources and could not be added[^:]*: (.*)", text
    ):
        yield f"the {kind} {names.strip()}"


def _is_placeholder(dataset: Any) -> bool:
    return str(dataset).startswith(f"{NO_OWNER}/")
