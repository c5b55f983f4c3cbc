"""What the pages show is true: YAML blocks load, commands parse, links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold.cli import make_parser
from goldfold.config import config_from_dict, is_pipeline, load_config
from goldfold.metrics import METRICS, get_metric, require_task
from goldfold.paths import shipped_configs
from goldfold.pipeline.graph import plan_pipeline

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MINIMAL = {
    "name": "page",
    "competition": {
        "name": "page",
        "task": "multiclass",
        "metric": "accuracy",
        "train_csv": "train.csv",
        "test_csv": "test.csv",
        "image_path": "{id}.png",
    },
}


@dataclass(frozen=True)
class Block:
    """A code block of a page; ``language`` is empty for an indented one, ``before`` is the paragraph above it."""

    page: Path
    line: int
    language: str
    text: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The path of a block that is a whole file: its first line as a comment, or the last name in the text above."""
        found = re.match(r"# (\S+\.yaml)\n", self.text)
        if found:
            return found.group(1)
        if not re.search(r"^(extends|rounds):", self.text, re.MULTILINE):
            return None
        named = re.findall(r"`(configs/\S+\.yaml)`", self.before)
        assert named, f"{self}: say which file this is, in a comment on its first line"
        return str(named[-1])


def blocks(page: Path) -> list[Block]:
    """Fenced blocks, and each indented line as a block of its own."""
    found: list[Block] = []
    language: str | None = None
    start, lines = 0, list[str]()
    before, ended = "", True
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"```(\w*)", line)
        if fence and language is None:
            language, start, lines = fence.group(1), number + 1, []
        elif fence:
            found.append(Block(page, start, language or "", "\n".join([*lines, ""]), before))
            language, before = None, ""
        elif language is not None:
            lines.append(line)
        elif line.startswith("    "):
            found.append(Block(page, number, "", line.strip()))
        elif line:
            before = line if ended else f"{before}\n{line}"
        ended = not line
    assert language is None, f"{page}: a code block does not end"
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
YAML = [block for block in BLOCKS if block.language in ("yaml", "yml")]
FILES = [block for block in YAML if block.file is not None]
FRAGMENTS = [block for block in YAML if block.file is None]


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with the shipped configurations and every file that a page shows."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(shipped_configs(), root / "configs")
    for block in FILES:
        path = root / str(block.file)
        assert not path.exists(), f"{block}: {block.file} is shown twice"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    return root


def test_the_quickstart_shows_whole_files() -> None:
    shown = {str(block.file) for block in FILES}
    assert {f"configs/shells/{name}.yaml" for name in ("competition", "b0", "resnet", "pipeline")} <= shown


@pytest.mark.parametrize("block", FILES, ids=str)
def test_a_file_on_a_page_loads(block: Block, project: Path) -> None:
    path = project / str(block.file)
    if is_pipeline(path):
        pipeline, configs = plan_pipeline(path)
        assert pipeline.rounds
        assert configs
    else:
        competition = load_config(path).competition
        if ":" not in competition.metric:
            require_task(get_metric(competition.metric), competition.task)


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
def test_a_fragment_on_a_page_holds_valid_keys_and_values(block: Block) -> None:
    fragment = yaml.safe_load(block.text)
    assert isinstance(fragment, dict)
    config = config_from_dict(merged(MINIMAL, fragment), block)
    for name in (config.competition.metric, *config.competition.extra_metrics):
        if ":" not in name:
            require_task(get_metric(name), config.competition.task)


def test_the_quickstart_names_every_metric() -> None:
    text = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []


# --- commands ----------------------------------------------------------------------------------------------------------


def command_names() -> set[str]:
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return set(commands.choices)


def shell_lines() -> list[tuple[str, str]]:
    """Whole command lines in code blocks, without their comments: where, text."""
    lines = []
    for block in BLOCKS:
        if block.language in ("", "bash", "sh", "shell", "console"):
            for offset, line in enumerate(block.text.splitlines()):
                text = re.sub(r"^(\$ )?(\S*/)?goldfold ", "goldfold ", line.strip())
                if text.startswith("goldfold "):
                    lines.append((f"{block.page.relative_to(ROOT)}:{block.line + offset}", text))
    return lines


def mentions() -> list[tuple[str, str]]:
    """Commands between backticks in the running text: where, name."""
    found = []
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            names = re.findall(r"`(?:\S*/)?goldfold ([a-z][a-z-]*)", line)
            found += [(f"{page.relative_to(ROOT)}:{number}", name) for name in names]
    return found


def test_mentioned_commands_exist() -> None:
    known = command_names()
    assert [f"{where}: goldfold {name}" for where, name in mentions() if name not in known] == []
    assert mentions()


def test_the_quickstart_shows_every_command_of_a_competition() -> None:
    shown = {text.split()[1] for where, text in shell_lines() if where.startswith("docs/quickstart.md")}
    assert {"check", "folds", "train", "predict", "ensemble", "submit", "score", "run"} <= shown


@pytest.mark.parametrize(("where", "text"), shell_lines(), ids=[where for where, _ in shell_lines()])
def test_a_command_on_a_page_parses(where: str, text: str, project: Path) -> None:
    arguments = shlex.split(text, comments=True)[1:]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stopped:
            make_parser().parse_args(arguments)
        assert stopped.value.code == 0
        return
    options, rest = make_parser().parse_known_args(arguments)
    assert all("=" in stray and not stray.startswith("-") for stray in rest), f"{where}: {rest}"
    overrides = [*getattr(options, "overrides", []), *rest]
    config = getattr(options, "config", None)
    if config is None or config.suffix != ".yaml":  # none, or a placeholder
        return
    if is_pipeline(project / config):
        plan_pipeline(project / config, overrides)
    else:
        load_config(project / config, overrides)


# --- links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert broken == []
