"""Kernels on this machine: the simulated run, and the notebook twin."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands
from goldfold.errors import BadInput

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_kernel(commands: Commands) -> None:
    test = commands.add(
        "kernel-test",
        kernel_test_command,
        "run the kernel on an exported pack as Kaggle does, and check its submission",
    )
    test.add_argument("pack", type=Path, metavar="DIR", help="an exported pack")
    test.add_argument(
        "--competition", type=Path, metavar="DIR", help="the competition's files as on Kaggle; default: data/<slug>"
    )
    test.add_argument("--kernel", type=Path, metavar="FILE", help="script or notebook; default: inference/kernel.py")
    test.add_argument(
        "--env",
        default="full",
        choices=["full", "own"],
        help="packages: Kaggle's versions, installed once (default), or the project's own",
    )
    test.add_argument("--python", metavar="PYTHON", help="interpreter for Kaggle's packages, such as python3.12")
    test.add_argument(
        "--layout",
        default="competitions",
        choices=["competitions", "datasets", "flat"],
        help="of the input folder: competitions/SLUG and datasets/OWNER/SLUG (default), all under datasets, or the older SLUG",
    )
    test.add_argument(
        "--isolation",
        default="auto",
        choices=["auto", "namespace", "guard"],
        help="how the network is cut: a network namespace, else a guard in the interpreter (default: auto)",
    )
    test.add_argument("--rows", type=int, metavar="N", help="rows of the hidden test set; default: another number")
    test.add_argument("--unreadable", type=int, default=0, metavar="N", help="broken images among them (default: 0)")
    test.add_argument(
        "--old-sample", action="store_true", help="the sample submission stays that of the public test set"
    )
    test.add_argument("--seed", type=int, default=0, help="of the hidden test set's choice and order")
    test.add_argument("--public", action="store_true", help="a public run with the public test set, no hidden rerun")
    test.add_argument("--hours", type=float, metavar="H", help="time limit; default: the pack's")
    test.add_argument("--memory", type=float, default=29.0, metavar="GB", help="memory limit (default: 29)")
    test.add_argument("--no-gpu", dest="gpu", action="store_false", help="hide the GPUs")
    test.add_argument("--out", type=Path, metavar="CSV", help="keep the submission")
    test.add_argument("--cache", type=Path, metavar="DIR", help="keeps Kaggle's packages; default: .cache/goldfold")
    notebook = commands.add("kernel-notebook", kernel_notebook_command, "write the notebook twin of a script kernel")
    notebook.add_argument("--kernel", type=Path, metavar="FILE", help="default: inference/kernel.py")
    notebook.add_argument("--out", type=Path, metavar="FILE", help="default: beside the kernel, .ipynb")


def kernel_test_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.kaggle.pack import read_pack
    from goldfold.kaggle.simulate import Simulation, find_kernel, simulate

    for name, least in (("rows", 0), ("unreadable", 0)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise BadInput(f"--{name}", f"{getattr(options, name)} is less than {least}")
    for name in ("hours", "memory"):
        if getattr(options, name) is not None and not 0 < getattr(options, name) < 1e6:
            raise BadInput(f"--{name}", f"{getattr(options, name)} is no amount")
    competition = options.competition or workspace.root / "data" / read_pack(options.pack).competition.slug
    settings = Simulation(
        pack=options.pack,
        competition=competition,
        kernel=options.kernel or find_kernel(workspace.root),
        environment=options.env,
        python=options.python,
        layout=options.layout,
        isolation=options.isolation,
        rows=options.rows,
        unreadable=options.unreadable,
        old_sample=options.old_sample,
        seed=options.seed,
        public=options.public,
        hours=options.hours,
        memory_gb=options.memory,
        gpu=options.gpu,
    )
    report = simulate(
        settings, options.cache or workspace.cache(), lambda line: print(f"  | {line}", flush=True), options.out
    )
    print(report.to_text())
    return 1 if report.problems else 0


def kernel_notebook_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.kaggle.notebook import write_notebook
    from goldfold.kaggle.simulate import find_kernel

    kernel = options.kernel or find_kernel(workspace.root)
    out = options.out or kernel.with_suffix(".ipynb")
    write_notebook(kernel, out)
    print(f"wrote {out}")
    return 0
