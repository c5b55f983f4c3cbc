"""The submission kernel of a Goldfold pack: one file, for Kaggle's script kernels; kernel.ipynb is the same as a notebook.

Attach the competition and the pack's data set, leave the internet off, save and run. Until the pack's wheels are installed
it needs Python alone. In this order:

1. find the pack and the competition's files, in any of Kaggle's three layouts of the input folder
2. write a valid submission.csv: the class prior for every row of the test CSV
3. install the pack's wheels, without an index
4. predict, in a process of its own; submission.csv is replaced by every blend that is better

Whatever fails after step 2, submission.csv stays valid. docs/kernel.md tells more.
"""

# %%
from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS: dict[str, str] = {
    # Hours that this kernel may take. Default: the limit of the competition, as the pack knows it.
    # "GOLDFOLD_HOURS": "9",
    # What to do when predicting fails. "1": fail, so that Kaggle shows an error. "0": end well, with the fallback or the last
    # good blend as the submission. Default: "0" in the hidden rerun, "1" in all other runs.
    # "GOLDFOLD_STRICT": "1",
    # The slug or the folder of the pack, where several are attached.
    # "GOLDFOLD_PACK": "my-pack",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

STARTED = time.time()  # the time limit counts from here
FORMAT = 1
ENGINE = """
import os, sys
from goldfold.inference.run import main
code = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # all is written; a thread that still computes would make torch abort while Python shuts down
"""
REPORT = "inference.json"
csv.field_size_limit(2**31 - 1)  # the default refuses cells that pandas reads
LAST_SECONDS = 30.0
"""How long before the limit predicting is ended by force. It plans to be done earlier."""

Table = list[list[str]]
"""A header and its rows."""


class Problem(Exception):
    """What ended the kernel, in one line."""


# %%
def say(text: str) -> None:
    print(f"kernel {time.time() - STARTED:7.1f} s: {text}", flush=True)


def some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" (and {len(names) - limit} more)" if len(names) > limit else "")


def input_folders(root: Path) -> list[Path]:
    """Every attached input: competitions/<slug>, datasets/<owner>/<slug>, notebooks/<owner>/<slug>, and the older <slug>."""

    def below(folder: Path) -> list[Path]:
        try:
            return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
        except OSError:
            return []

    owners = [*below(root / "datasets"), *below(root / "notebooks")]
    found = [*below(root / "competitions"), *(folder for owner in owners for folder in below(owner))]
    found += [folder for folder in below(root) if folder.name not in ("competitions", "datasets", "notebooks")]
    return found


def find_pack(root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the pack, and what its pack.json says. Raises Problem."""
    wanted = os.environ.get("GOLDFOLD_PACK", "")
    # A competition may have very many folders, and holds no pack.
    attached = [folder for folder in input_folders(root) if folder.parent != root / "competitions"]
    folders = [Path(wanted)] if "/" in wanted else attached
    # A data set that was uploaded as an archive has its files one folder further down.
    found = [
        path.parent
        for folder in folders
        for path in (folder / "pack.json", *folder.glob("*/pack.json"))
        if path.is_file()
    ]
    if wanted and "/" not in wanted:
        found = [folder for folder in found if wanted in (folder.name, folder.parent.name)]
    if not found:
        seen = some([str(folder.relative_to(root)) for folder in input_folders(root)]) or "nothing"
        raise Problem(f"no pack{f' {wanted!r}' if wanted else ''} under {root} (it holds {seen}); attach its data set")
    if len(found) > 1:
        raise Problem(f"{len(found)} packs: {some([str(folder) for folder in found])}; name one in GOLDFOLD_PACK")
    where = found[0] / "pack.json"
    try:
        pack = json.loads(where.read_text(encoding="utf-8"))
        if pack["format"] != FORMAT:
            raise Problem(
                f"{where}: format {pack['format']}, this kernel reads {FORMAT}; take the kernel of its Goldfold"
            )
        needed = {"task": "threshold", "submission": "shape", "competition": "test_csv"}
        missing = [f"{part}.{key}" for part, key in needed.items() if key not in pack[part]]
        if missing or not pack["prior"] or not pack["hours"]:
            raise Problem(f"{where}: not a whole pack; export it again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{where}: not a readable pack ({type(error).__name__}: {error}); export it again") from None
    return found[0], pack


def find_competition(root: Path, pack: dict[str, Any]) -> Path:
    """The folder of the competition's files. Raises Problem."""
    slug = pack["competition"]["slug"]
    names = [name for name in (pack["competition"]["test_csv"], pack["competition"]["sample_csv"]) if name]
    folders = input_folders(root)
    holding = [folder for folder in folders if any((folder / name).is_file() for name in names)]
    named = [folder for folder in holding if folder.name == slug]
    if named or len(holding) == 1:  # under another name only where nothing else has such files
        return (named or holding)[0]
    seen = some([str(folder.relative_to(root)) for folder in folders]) or "nothing"
    raise Problem(f"no {' or '.join(names)} under {root} (it holds {seen}); attach the competition '{slug}'")


# %%
def read_table(path: Path) -> Table:
    """A CSV as text, of UTF-8, else of Latin-1. Raises Problem when it has no header."""

    def read(encoding: str) -> Table:
        with path.open(newline="", encoding=encoding) as file:
            return [row for row in csv.reader(file) if row]

    try:
        try:
            table = read("utf-8-sig")
        except UnicodeDecodeError:
            table = read("latin-1")
    except (OSError, csv.Error) as error:
        raise Problem(f"{path}: not a readable CSV file ({error})") from None
    if not table:
        raise Problem(f"{path}: the CSV file is empty, without even a header")
    return table


def column(table: Table, name: str, path: Path) -> list[str]:
    if name not in table[0]:
        raise Problem(f"{path}: no column '{name}'; its columns are {some(table[0], 20)}")
    place = table[0].index(name)
    return [row[place] if place < len(row) else "" for row in table[1:]]


def prior_cells(pack: dict[str, Any]) -> dict[str, str]:
    """What each column of the submission holds for a picture of which nothing is known: the class prior."""
    task, format, prior = pack["task"], pack["submission"], [float(value) for value in pack["prior"]]
    classes, columns, labels = task["classes"], format["columns"], format["labels"]
    threshold = float(task["threshold"])
    if format["shape"] == "label":
        if task["name"] == "binary":
            answer = int(prior[0] >= threshold)
        elif task["name"] == "ordinal":
            answer = int(sum(grade * share for grade, share in enumerate(prior)) + 0.5)
        else:
            answer = prior.index(max(prior))
        return {columns[0]: labels[answer]}
    if format["shape"] == "string":
        likely = [label for label, share in zip(labels, prior, strict=True) if share >= threshold]
        return {columns[0]: task["separator"].join(likely or [labels[prior.index(max(prior))]])}
    share_of = dict(zip(classes, prior, strict=True))
    if task["name"] == "binary":
        share_of[task["negative"]] = 1 - prior[0]
    shares = {name: share_of[of] for name, of in zip(columns, format["classes"], strict=True)}
    if format["hard"]:
        return {name: str(int(share >= threshold)) for name, share in shares.items()}
    return {name: repr(share) for name, share in shares.items()}


def fallback(folder: Path, pack: dict[str, Any]) -> tuple[Table, bool]:
    """A submission before anything is predicted, and whether its ids are surely those of the test set.

    Raises Problem where even that is impossible.

    A row for each row of the test CSV (without one: of the sample submission), in the sample's columns. Cells hold the class
    prior; where the sample's columns are not those that the pack knows, they are the sample's own.
    """
    about = pack["competition"]
    key, test_csv = about["id_column"], folder / about["test_csv"]
    sample_csv = folder / about["sample_csv"] if about["sample_csv"] else None
    sample = read_table(sample_csv) if sample_csv and sample_csv.is_file() else None
    sure = True
    try:
        ids = list(dict.fromkeys(column(read_table(test_csv), key, test_csv)))
    except Problem as problem:
        if sample is None or sample_csv is None:
            raise
        say(f"{problem}; the fallback has the sample submission's rows")
        sure = False
        ids = list(dict.fromkeys(column(sample, key, sample_csv)))
    prior = prior_cells(pack)
    if sample is None or sample_csv is None:
        return [[key, *prior], *([name, *prior.values()] for name in ids)], sure
    header, known = sample[0], dict(zip(column(sample, key, sample_csv), sample[1:], strict=True))
    if set(ids) <= set(known):  # all that is to be submitted, in its order
        ids = list(known)
    if set(header) == {key, *prior}:
        return [header, *([name if cell == key else prior[cell] for cell in header] for name in ids)], sure
    any_row = sample[1] if len(sample) > 1 else [""] * len(header)
    place = header.index(key)
    rows = [[*known.get(name, any_row), *[""] * len(header)][: len(header)] for name in ids]
    for row, name in zip(rows, ids, strict=True):
        row[place] = name
    return [header, *rows], sure


def any_sample(root: Path) -> Table:
    """The sample submission of whatever competition is attached, for when there is no pack. Raises Problem."""
    found = [
        path for folder in input_folders(root) for path in sorted(folder.glob("*.csv")) if "sample" in path.name.lower()
    ]
    if len(found) != 1:
        raise Problem(f"{len(found)} sample submissions under {root}")
    return read_table(found[0])


def write_table(path: Path, table: Table) -> None:
    """A whole file or none."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table)
    beside.replace(path)


def misfit(submission: Path, expected: Table, key: str, sure: bool) -> str | None:
    """In what way a submission differs from the columns and ids of ``expected``; None where it does not.

    Where ``expected`` is not ``sure`` of its ids, Goldfold's own are believed, which checked them against the test CSV.
    """
    try:
        found = read_table(submission)
        ids = column(found, key, submission)
    except Problem as problem:
        return str(problem)
    if found[0] != expected[0]:
        return f"its columns are {some(found[0], 20)}, not {some(expected[0], 20)}"
    if len(ids) != len(set(ids)) or (sure and set(ids) != set(column(expected, key, submission))):
        return f"its {len(ids)} ids are not the {len(expected) - 1} of the test set"
    return None


# %%
def install(pack: Path) -> list[str]:
    """Install those of the pack's wheels that are missing here, or here in another version. Raises Problem."""
    digests: dict[str, str] = {}
    # A broken manifest is for the predicting to tell.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((pack / "MANIFEST.json").read_text(encoding="utf-8"))
        digests = {item["path"]: item["sha256"] for item in manifest["files"]}
    chosen, names = [], []
    for wheel in sorted(pack.glob("wheels/*.whl")):
        name, version = wheel.name.split("-")[:2]
        name = re.sub(r"[-_.]+", "-", name).lower()
        if installed_version(name) == version and (name != "goldfold" or importable(name)):
            continue
        digest = digests.get(f"wheels/{wheel.name}")
        if digest and hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
            raise Problem(f"{wheel}: not the file that was exported (MANIFEST.json); upload the pack again")
        chosen.append(str(wheel))
        names.append(f"{name} {version}")
    if chosen:
        # --no-deps: Kaggle's own packages stay as they are. --force-reinstall: the pack's file, whatever lay here before.
        options = "--no-index --no-deps --force-reinstall --no-input --disable-pip-version-check --quiet"
        command = [sys.executable, "-m", "pip", "install", *options.split(), *chosen]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            told = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
            raise Problem(f"pip cannot install {some(names)}: {told[0]}")
        importlib.invalidate_caches()
    return names


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def importable(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a mere folder of that name is no package


def predict(limit: float) -> None:
    """Run the pack's Goldfold until it is done, or until ``limit`` (as of time.time()). Raises Problem.

    A process of its own may run out of memory, crash or hang, and still leave a submission behind.
    """
    command = [sys.executable, "-u", "-c", ENGINE]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0
    )
    assert process.stdout is not None
    last: list[str] = []
    reader = threading.Thread(target=relay, args=(process.stdout, last), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout=max(0.0, limit - time.time()))
    except subprocess.TimeoutExpired:
        raise Problem("predicting went on until the time limit, and was ended") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.wait()
        reader.join(timeout=5)
    if code:
        said = f": {last[0]}" if last else ""
        raise Problem(f"predicting ended with {exit_reason(code)}{said}")


def given_up(report: Path) -> None:
    """Raises Problem where predicting ended well, but not with all that the pack holds: networks were broken.

    A blend that is not complete because the time was short is no problem: that is what the order of the networks is for.
    """
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(report.read_text(encoding="utf-8"))
        reasons = [str(reason) for reason in dict(told.get("failed") or {}).values()]
        if reasons:
            raise Problem(f"{len(reasons)} network{'s' * (len(reasons) > 1)} could not be used: {some(reasons, 2)}")
        if told.get("error"):
            raise Problem(f"predicting ended early: {told['error']}")


def relay(lines: Iterator[str], last: list[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)
        if line.strip():
            last[:] = [line.strip().removeprefix("goldfold: ")]


def exit_reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, which may mean that memory ran out" if name == "SIGKILL" else name
    return f"signal {-code}"


# %%
def main() -> int:
    """The exit code: 0, or 1 where Kaggle is to show a failure."""
    root = Path(os.environ.setdefault("GOLDFOLD_INPUT", "/kaggle/input"))
    submission = Path(os.environ.setdefault("GOLDFOLD_WORKING", "/kaggle/working")) / "submission.csv"
    rerun = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))
    strict = is_strict(rerun)
    say(f"{'the hidden rerun' if rerun else 'a public run'}; Python {sys.version.split()[0]}; input {root}")
    early: Table = []
    key, sure = "", True
    wheels: list[str] = []
    problem: str | None = None
    for name in (submission.name, REPORT):  # of a run before, in the same session
        submission.with_name(name).unlink(missing_ok=True)
    try:
        folder, pack = find_pack(root)
        competition = find_competition(root, pack)
        say(f"pack {folder}; competition {competition}")
        key = pack["competition"]["id_column"]
        early, sure = fallback(competition, pack)
        write_table(submission, early)
        written = submission.stat()
        say(f"submission.csv is there, rows: {len(early) - 1}, all with the class prior so far")
        wheels = install(folder)
        say(f"installed {', '.join(wheels)}" if wheels else "nothing to install")
        os.environ.update(
            GOLDFOLD_PACK=str(folder), GOLDFOLD_COMPETITION=str(competition), GOLDFOLD_STARTED=repr(STARTED)
        )
        predict(time_limit(pack))
        wrong = misfit(submission, early, key, sure)
        if wrong:
            raise Problem(f"submission.csv is not valid: {wrong}")
        if (submission.stat().st_ino, submission.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns):
            raise Problem("no predictions were written")
        given_up(submission.with_name(REPORT))
    except Problem as stopped:
        problem = str(stopped)
    except Exception as error:  # whatever it is, a submission stays
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if problem is not None:
        say(f"FAILED: {problem}")
    holds = "predictions" if problem is None else keep(submission, early, key, sure, root)
    record = {"submission": holds, "problem": problem, "wheels": wheels, "seconds": round(time.time() - STARTED, 1)}
    (submission.parent / "kernel.json").write_text(
        json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    failed = holds == "nothing" or (problem is not None and strict)
    say(f"submission.csv holds {holds}{'; the kernel fails, so that this is seen' if failed else ''}")
    return int(failed)


def is_strict(rerun: bool) -> bool:
    """Whether a failure after the fallback makes the kernel fail."""
    text = os.environ.get("GOLDFOLD_STRICT", "")
    if text not in ("", "0", "1"):
        say(f"GOLDFOLD_STRICT={text} is neither 0 nor 1, and is left out")
    return {"0": False, "1": True}.get(text, not rerun)


def time_limit(pack: dict[str, Any]) -> float:
    """When predicting has to be over, as of time.time(). Raises Problem."""
    text = os.environ.get("GOLDFOLD_HOURS") or str(pack["hours"])
    try:
        seconds = float(text) * 3600
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise Problem(f"GOLDFOLD_HOURS={text}: not a number of hours")
    return STARTED + seconds - min(LAST_SECONDS, seconds / 50)


def keep(submission: Path, early: Table, key: str, sure: bool, root: Path) -> str:
    """After a failure the last good blend stays, or the fallback is put back. Says what submission.csv holds."""
    try:
        if not early:
            write_table(submission, any_sample(root))
            return "the sample submission"
        if misfit(submission, early, key, sure) is None:
            return "the fallback" if same_answers(read_table(submission), early, key) else "the last good blend"
        write_table(submission, early)
        return "the fallback"
    except (Problem, OSError) as error:
        say(f"no fallback either: {error}")
        return "nothing"


def same_answers(table: Table, other: Table, key: str) -> bool:
    """Whether two submissions of the same columns say the same, whatever the order of rows and the digits of numbers."""

    def alike(cell: str, other_cell: str) -> bool:
        try:
            return cell == other_cell or abs(float(cell) - float(other_cell)) < 1e-5
        except ValueError:
            return False

    place = other[0].index(key)
    rows = {row[place]: row for row in table[1:]}
    return rows.keys() == {row[place] for row in other[1:]} and all(
        all(map(alike, rows[row[place]], row)) for row in other[1:]
    )


if __name__ == "__main__":
    code = main()
    if code:  # in a notebook every exit is an error
        raise SystemExit(code)
