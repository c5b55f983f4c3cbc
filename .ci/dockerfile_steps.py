#!/usr/bin/env python3
# ruff: noqa: T201
"""The Dockerfile's very steps without Docker: what it copies, in a folder; what it runs, in a fresh virtual environment.

    python .ci/dockerfile_steps.py                       lists the steps and what the builder is given
    python .ci/dockerfile_steps.py --run                 builds, then runs ENTRYPOINT with CMD
    python .ci/dockerfile_steps.py --run -- demo --tiny  builds, then runs ENTRYPOINT with these arguments

Steps of the system itself (``useradd``) are named and left out. Exit codes: 0; 1 a step failed; 2 the Dockerfile holds
something that this script does not understand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

KNOWN = ("FROM", "ENV", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD")
PYTHON = ("python", "pip")
KEPT = re.compile(r"(PIP_|SSL_|REQUESTS_CA|HOME$|LANG|LC_|TMPDIR|OMP_)|\w+_proxy$", re.IGNORECASE)


class Unknown(Exception):
    """The Dockerfile holds something that this script does not understand."""


@dataclass(frozen=True)
class Step:
    """An instruction on ``line``; ``text`` has its continuation lines joined."""

    line: int
    word: str
    text: str

    def __str__(self) -> str:
        return f"Dockerfile:{self.line} {self.word} {self.text}"

    @property
    def system(self) -> bool:
        """Whether it changes the system: a RUN that calls neither python nor pip first."""
        return self.word == "RUN" and self.text.split()[0] not in PYTHON


def parse(text: str) -> list[Step]:
    """The instructions in order. Raises Unknown for one that is not known here."""
    steps, parts, start = list[Step](), list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if parts else number
        parts.append(line.removesuffix("\\").strip() if line.endswith("\\") else line.strip())
        if line.endswith("\\"):
            continue
        word, _, rest = " ".join(parts).partition(" ")
        if word.upper() not in KNOWN or not rest or (word.upper() in ("RUN", "COPY") and rest.startswith("--")):
            raise Unknown(f"Dockerfile:{start}: cannot follow '{word} {rest}'")
        steps.append(Step(start, word.upper(), rest))
        parts = []
    if parts:
        raise Unknown(f"Dockerfile:{start}: the last line does not end")
    return steps


def context(root: Path) -> Iterator[str]:
    """The files that a builder is given: those that .dockerignore leaves, relative to ``root``."""
    patterns = [line.strip() for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    patterns = [line for line in patterns if line and not line.startswith("#")]
    wanted = [pattern.removeprefix("!").split("/")[0] for pattern in patterns if pattern.startswith("!")]
    for top in sorted(root.iterdir()):
        # Only folders that are named again need to be looked into: .git and data may be large.
        if not any(fnmatchcase(top.name, pattern) for pattern in wanted):
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(root).as_posix()
            if path.is_file() and not ignored(name, patterns):
                yield name


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """By .dockerignore's rules: the last pattern that matches the file, or a folder above it, decides."""
    parts = name.split("/")
    above = ["/".join(parts[: length + 1]) for length in range(len(parts))]
    out = False
    for pattern in patterns:
        bare = pattern.removeprefix("!").strip("/")
        if any(_matches(part, bare) for part in above):
            out = not pattern.startswith("!")
    return out


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(_matches(name.split("/", skip)[-1], pattern[3:]) for skip in range(name.count("/") + 1))
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def copies(step: Step, files: Sequence[str]) -> list[tuple[str, str]]:
    """Source and goal of every file of a COPY. Raises Unknown where a plain source is not among ``files``."""
    *sources, goal = shlex.split(step.text)
    found = list[tuple[str, str]]()
    for source in sources:
        inside = [name for name in files if fnmatchcase(name, source) or name.startswith(f"{source}/")]
        if not inside and not re.search(r"[*?\[]", source):
            raise Unknown(f"Dockerfile:{step.line}: COPY of '{source}', which .dockerignore holds back or is not there")
        for name in inside:
            rest = name.removeprefix(f"{source}/") if name.startswith(f"{source}/") else name.rsplit("/", 1)[-1]
            found.append((name, rest if goal in (".", "./") else f"{goal.rstrip('/')}/{rest}"))
    return found


def assignments(step: Step) -> dict[str, str]:
    """The names and values of an ENV or ARG; an ARG without a value sets nothing."""
    return dict(part.split("=", 1) for part in shlex.split(step.text) if "=" in part)


def run_steps(steps: Sequence[Step], root: Path, image: Path, then: Sequence[str], given: dict[str, str]) -> int:
    """Follow the steps under ``image``; returns the exit code of the first one that fails, else that of the last."""
    environment = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    environment["PATH"] = os.pathsep.join([str(image / "venv/bin"), "/usr/local/bin", "/usr/bin", "/bin"])
    files, folder = list(context(root)), image / "root"
    folder.mkdir()
    for name in files:  # all at once, as a builder is given them: what changes meanwhile takes no part
        (image / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, image / "context" / name)
    entry, arguments = list[str](), list[str]()
    for step in steps:
        started = time.monotonic()
        if step.word in ("FROM", "USER") or step.system:
            print(f"left out: {step}", flush=True)
        elif step.word in ("ENV", "ARG"):
            set_here = assignments(step)
            environment |= (
                set_here if step.word == "ENV" else {name: given.get(name, set_here[name]) for name in set_here}
            )
        elif step.word == "WORKDIR":
            folder = image / "root" / step.text.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            for source, goal in copies(step, files):
                (folder / goal).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(image / "context" / source, folder / goal)
        elif step.word == "RUN":
            print(f"+ {step}", flush=True)
            code = subprocess.run(["/bin/sh", "-c", step.text], cwd=folder, env=environment, check=False).returncode
            if code:
                print(f"failed with exit code {code}: {step}", file=sys.stderr)
                return code
            print(f"  {time.monotonic() - started:.0f} s", flush=True)
        elif step.word == "ENTRYPOINT":
            entry = json.loads(step.text)
        elif step.word == "CMD":
            arguments = json.loads(step.text)
    command = [*entry, *(then or arguments)]
    print(f"+ {shlex.join(command)}", flush=True)
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None or not Path(program).is_relative_to(image):
        print(f"the steps did not install '{command[0]}'", file=sys.stderr)
        return 1
    return subprocess.run([program, *command[1:]], cwd=folder, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the folder to build")
    parser.add_argument("--run", action="store_true", help="run the steps, in a temporary folder (slow: it installs)")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as for docker build")
    parser.add_argument("--without-pip", action="store_true", help="for steps that install nothing")
    parser.add_argument("then", nargs="*", metavar="ARGUMENT", help="arguments of ENTRYPOINT, after --")
    options = parser.parse_args()
    root = options.root.resolve()
    try:
        steps = parse((root / "Dockerfile").read_text(encoding="utf-8"))
        files = list(context(root))
        copied = [source for step in steps if step.word == "COPY" for source, _ in copies(step, files)]
    except Unknown as error:
        print(error, file=sys.stderr)
        return 2
    if not options.run:
        print("\n".join(str(step) for step in steps))
        print(f"{len(files)} files for the builder, {len(copied)} of them copied")
        return 0
    with tempfile.TemporaryDirectory(prefix="dockerfile-steps-") as image:
        print(f"building in {image}, with {sys.executable}", flush=True)
        without = ["--without-pip"] if options.without_pip else []
        subprocess.run([sys.executable, "-m", "venv", *without, Path(image) / "venv"], check=True)
        given = dict(part.split("=", 1) for part in options.build_arg)
        return 1 if run_steps(steps, root, Path(image), options.then, given) else 0


if __name__ == "__main__":
    sys.exit(main())
