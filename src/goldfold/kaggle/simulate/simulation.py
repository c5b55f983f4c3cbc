"""One simulated run: lay out the inputs, shut the kernel in, run it under limits, check what it leaves behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from goldfold import files
from goldfold.errors import BadInput
from goldfold.kaggle.metadata import DATASET_FILE
from goldfold.kaggle.notebook import read_script
from goldfold.kaggle.pack import Pack, read_pack
from goldfold.kaggle.simulate.environment import Environment, make_layer
from goldfold.kaggle.simulate.hidden import HiddenTest, make_hidden, show_public
from goldfold.kaggle.simulate.isolation import Isolation, set_stage
from goldfold.kaggle.simulate.watch import Ended, watch
from goldfold.submission import check_submission

Layout = Literal["competitions", "datasets", "flat"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
KERNEL, CONSTRAINTS = "inference/kernel.py", "constraints-kaggle.txt"
REPORT = "inference.json"
MEMORY_GB = 29.0
"""What Kaggle gives a kernel with GPUs."""
SOMEBODY = "somebody"


@dataclass(frozen=True)
class Simulation:
    """What to simulate. ``pack``: an exported folder; ``competition``: the competition's files as Kaggle mounts them.

    ``rows``, ``unreadable``, ``old_sample``, ``seed``: of the hidden test set, as for ``make_hidden``; with ``public`` the run
    is no hidden rerun, and sees the files as they are. ``hours``: the limit (None: the pack's), which the kernel is told;
    ``memory_gb``: in 10^9 bytes. ``gpu`` False hides all GPUs. ``python``: an
    interpreter for the environment ``full`` (None: this one).
    """

    pack: Path
    competition: Path
    kernel: Path
    environment: Environment = "full"
    python: str | None = None
    layout: Layout = "competitions"
    isolation: Isolation = "auto"
    rows: int | None = None
    unreadable: int = 0
    old_sample: bool = False
    seed: int = 0
    public: bool = False
    hours: float | None = None
    memory_gb: float = MEMORY_GB
    gpu: bool = True


@dataclass(frozen=True)
class Report:
    """What was simulated (``facts``: name → text) and what went wrong (``problems``, a line each; none: it passed)."""

    facts: dict[str, str]
    problems: tuple[str, ...]

    def to_text(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{name:<{width}}  {text}" for name, text in self.facts.items()]
        return "\n".join(
            [*lines, *(f"FAILED: {problem}" for problem in self.problems or ())] + ["passed"] * (not self.problems)
        )


def find_kernel(root: Path) -> Path:
    """The kernel of the project folder ``root``, else that of the checkout that this code is part of. Raises BadInput."""
    for folder in (root, Path(__file__).resolve().parents[4]):
        if (folder / KERNEL).is_file():
            return folder / KERNEL
    raise BadInput(root / KERNEL, "the file does not exist", "name the kernel with --kernel")


def simulate(settings: Simulation, cache: Path, show: Callable[[str], None], out: Path | None = None) -> Report:
    """Run the kernel; its log goes to ``show`` line by line, its submission.csv is copied to ``out``.

    ``cache``: where Kaggle's packages are kept (environment ``full``). Raises BadInput when pack, kernel or competition cannot
    be read, GoldfoldError when the environment cannot be made; what the kernel does is told in the report.
    """
    pack = read_pack(settings.pack)
    script = read_script(settings.kernel)
    if not settings.competition.is_dir():
        raise BadInput(
            settings.competition, "there is no such folder", "name the competition's files with --competition"
        )
    hours = pack.hours if settings.hours is None else settings.hours
    with tempfile.TemporaryDirectory(prefix="goldfold-kernel-") as name:
        scratch = Path(name).resolve()
        for folder in ("input", "working", "temp", "src", "home"):
            (scratch / folder).mkdir()
        kernel = scratch / "src" / "script.py"
        kernel.write_text(script, encoding="utf-8")
        hidden = _lay_out(settings, pack, scratch / "input")
        own_wheel = any(settings.pack.glob("wheels/goldfold-*.whl"))
        constraints = settings.kernel.parent / CONSTRAINTS
        layer = make_layer(scratch / "python", settings.environment, constraints, cache, own_wheel, settings.python)
        stage = set_stage(
            scratch,
            layer.python,
            layer.packages,
            kernel,
            [settings.competition, settings.pack],
            settings.isolation,
            _variables(settings),
        )
        facts = {
            "pack": f"{settings.pack}: {pack.kind} '{pack.source}', {_count(len(pack.members), 'member')}",
            "packages": layer.words,
            "network": f"cut: {stage.network}",
            "inputs": f"layout '{settings.layout}', read-only: {stage.inputs}",
            "test set": _describe(settings, hidden),
        }
        ended = watch(
            stage.command, stage.directory, stage.variables, hours * 3600, int(settings.memory_gb * 1e9), show
        )
        facts["time"] = f"{ended.seconds:.1f} s of {hours * 3600:.0f} s"
        facts["memory"] = f"{ended.memory_bytes / 1e9:.2f} GB of {settings.memory_gb:g} GB, at most"
        submission = scratch / "working" / "submission.csv"
        holds, problems = _judge(ended, submission, pack, hidden)
        facts["submission"] = holds
        facts |= _predicted(submission.with_name(REPORT))
        if out is not None and submission.is_file():
            files.write_atomic(out, lambda temporary: _copy(submission, temporary))
    return Report(facts, tuple(problems))


def _lay_out(settings: Simulation, pack: Pack, root: Path) -> HiddenTest:
    """Both inputs under Kaggle's input folder ``root``."""
    record = settings.pack / DATASET_FILE
    named = str(files.read_json(record).get("id", "")) if record.is_file() else ""
    owner, _, slug = named.rpartition("/")
    slug, competition = slug or "pack", pack.competition.slug
    if slug == competition and settings.layout == "flat":
        what = f"the data set's slug '{slug}' is the competition's, and in the older layout both lie in one folder"
        raise BadInput(record, what, f"end its id in another slug, such as {slug}-pack")
    as_dataset = root / "datasets" / (owner or SOMEBODY)
    places = {
        "competitions": (root / "competitions" / competition, as_dataset / slug),
        "datasets": (root / "datasets" / SOMEBODY / competition, as_dataset / slug),
        "flat": (root / competition, root / slug),
    }
    data, packed = places[settings.layout]
    packed.mkdir(parents=True)
    for path in sorted(settings.pack.resolve().iterdir()):
        if path.name != DATASET_FILE:  # Kaggle keeps it to itself
            (packed / path.name).symlink_to(path)
    columns = pack.submission.columns
    if settings.public:
        return show_public(settings.competition, data, pack.competition, columns)
    return make_hidden(
        settings.competition,
        data,
        pack.competition,
        columns,
        rows=settings.rows,
        unreadable=settings.unreadable,
        seed=settings.seed,
        old_sample=settings.old_sample,
    )


def _variables(settings: Simulation) -> dict[str, str]:
    variables = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if not settings.public:
        variables["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    if settings.hours is not None:
        variables["GOLDFOLD_HOURS"] = repr(settings.hours)
    if not settings.gpu:
        variables["CUDA_VISIBLE_DEVICES"] = "-1"
    return variables


def _describe(settings: Simulation, hidden: HiddenTest) -> str:
    if settings.public:
        return f"the public one, {_count(len(hidden.ids), 'row')}"
    broken = f", {len(hidden.unreadable)} of them unreadable" if hidden.unreadable else ""
    old = "; the sample submission stays the public one" if settings.old_sample else ""
    return f"hidden, {_count(len(hidden.ids), 'row')}{broken} (public: {hidden.public_rows}){old}"


def _predicted(report: Path) -> dict[str, str]:
    """What Goldfold says of its predictions, where it came that far."""
    if not report.is_file():
        return {}
    told = files.read_json(report)
    members = ", ".join(f"{item['name']} {item['folds']}/{item['of']}" for item in told["members"])
    whole = "complete" if told["complete"] else "not complete"
    unreadable = f", {told['unreadable']} unreadable" if told["unreadable"] else ""
    return {"predicted": f"{told['predicted']} of {_count(told['rows'], 'row')}{unreadable}; {whole}: {members}"}


def _judge(ended: Ended, submission: Path, pack: Pack, hidden: HiddenTest) -> tuple[str, list[str]]:
    """What submission.csv is, in words, and every fault of the run."""
    record = submission.with_name("kernel.json")
    told = files.read_json(record) if record.is_file() else {}
    problems = []
    if ended.limit is not None:
        what = "took longer than its time limit" if ended.limit == "time" else "used more than its memory limit"
        problems.append(f"the kernel {what} and was killed")
    elif ended.code:
        problems.append(f"the kernel failed with exit code {ended.code}: {told.get('problem') or 'see its log'}")
    if not submission.is_file():
        return "none", [*problems, "there is no submission.csv"]
    try:
        frame = files.read_csv(submission)
        check_submission(frame, hidden.sample, pack.submission, pack.task, submission.name)
    except BadInput as error:
        return "not valid", [*problems, str(error)]
    holds = str(told.get("submission", "not told by the kernel"))
    if not problems and told.get("problem"):
        problems.append(f"the submission is {holds}: {told['problem']}")
    return f"valid, {_count(len(frame), 'row')}: {holds}", problems


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
