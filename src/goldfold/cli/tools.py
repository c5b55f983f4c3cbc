"""Looking and measuring: previews, learning rates, ablations, the canary, lists."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands
from goldfold.errors import BadInput

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_tools(commands: Commands) -> None:
    preview = commands.add_config(
        "augment-preview", augment_preview_command, "draw a sheet of augmented training images"
    )
    preview.add_argument("--photos", type=int, default=6, metavar="N", help="rows: training images (default: 6)")
    preview.add_argument("--draws", type=int, default=8, metavar="N", help="columns: draws of each (default: 8)")
    preview.add_argument("--seed", type=int, default=0, help="seed of the choice and of the draws")
    preview.add_argument("--out", type=Path, help="PNG file; default: previews/<name>.png")
    lr_find = commands.add_config("lr-find", lr_find_command, "raise the learning rate step by step and watch the loss")
    lr_find.add_argument("--fold", type=int, default=0, metavar="K", help="train on this fold's rows (default: 0)")
    lr_find.add_argument("--steps", type=int, default=100, metavar="N", help="optimizer steps (default: 100)")
    lr_find.add_argument("--from", dest="lowest", type=float, default=1e-7, metavar="LR", help="first rate: 1e-7")
    lr_find.add_argument("--to", dest="highest", type=float, default=10.0, metavar="LR", help="last rate: 10")
    lr_find.add_argument("--out", type=Path, help="PNG and JSON file; default: lr-find/<name>.png and .json")
    ablate = commands.add_config("ablate", ablate_command, "train with tricks on and off; says what each is worth")
    kind = ablate.add_mutually_exclusive_group(required=True)
    kind.add_argument("--stack", metavar="TRICKS", help="add one after the other (comma-separated names or key=value)")
    kind.add_argument("--drop", metavar="TRICKS", help="all on, then each left out")
    kind.add_argument("--add", metavar="TRICKS", help="all off, then each alone")
    ablate.add_argument("--seeds", type=int, default=4, metavar="N", help="trainings a row (default: 4)")
    ablate.add_argument("--folds", default="", metavar="K,K", help="only these folds; default: all")
    ablate.add_argument("--name", help="the ablation's folder; default: from the configuration and the kind")
    ablate.add_argument("--keep-weights", action="store_true", help="keep every trained network")
    canary = commands.add(
        "canary", canary_command, "shuffle the labels, plant twins, run a pipeline small: does a score leak?"
    )
    canary.add_argument("config", type=Path, metavar="PIPELINE")
    canary.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings for every experiment of the pipeline"
    )
    canary.add_argument("--seeds", type=int, default=1, metavar="N", help="competitions, pooled (default: 1)")
    canary.add_argument("--seed", type=int, default=0, metavar="S", help="the first of them (default: 0)")
    canary.add_argument("--rows", type=int, default=200, metavar="N", help="labelled rows of each (default: 200)")
    canary.add_argument("--epochs", type=int, default=30, metavar="N", help="of every training (default: 30)")
    canary.add_argument("--size", type=int, metavar="PX", help="side of the images (default: 64)")
    canary.add_argument("--keep", action="store_true", help="keep the competitions and all that was trained")
    tricks = commands.add("tricks", tricks_command, "list the tricks; or show one")
    tricks.add_argument("trick", nargs="?", metavar="NAME", help="show this trick's keys, values and source")
    tricks.add_argument("--write", type=Path, metavar="FILE", help="write the table of all tricks as Markdown")
    schema = commands.add("schema", schema_command, "write the JSON schemas of the configuration files")
    schema.add_argument("--to", type=Path, metavar="DIR", help="write files here; default: print the experiment's")


def augment_preview_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.preview import preview

    config = load_config(options.config, options.overrides)
    out = options.out or workspace.root / "previews" / f"{config.name}.png"
    print(f"wrote {preview(config, workspace, out, options.photos, options.draws, options.seed)}")
    return 0


def lr_find_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.lr_find import lr_find

    config = load_config(options.config, options.overrides)
    out = (options.out or workspace.root / "lr-find" / str(config.name)).with_suffix("")
    found = lr_find(config, workspace, out, options.fold, options.lowest, options.highest, options.steps)
    for name, rate in found["suggestions"].items():
        print(f"{name.replace('_', ' ')}: optim.lr={rate:.2g}")
    print(f"wrote {out}.png and {out}.json")
    return 0


def ablate_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.pipeline.ablate import Kind, ablate

    kind: Kind = "stack" if options.stack is not None else "drop" if options.drop is not None else "add"
    table = ablate(
        options.config,
        options.overrides,
        kind,
        getattr(options, kind),
        options.seeds,
        _folds(options.folds),
        options.name,
        workspace,
        options.keep_weights,
    )
    print(table.read_text(encoding="utf-8"))
    print(f"wrote {table.parent}")
    return 0


def _folds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput("--folds", f"expected numbers such as 0,1, got '{text}'") from None


def canary_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.canary import run_canary

    report = run_canary(
        options.config,
        options.overrides,
        workspace,
        seed=options.seed,
        seeds=options.seeds,
        rows=options.rows,
        epochs=options.epochs,
        size=options.size,
        keep=options.keep,
    )
    print(report.to_text())
    print(f"wrote {workspace.root / 'canary' / report.pipeline / 'canary.json'}")
    return report.exit_code


def tricks_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold import tricks

    if options.write is not None:
        from goldfold import files

        files.write_text(options.write, tricks.page())
        print(f"wrote {options.write}")
    elif options.trick is not None:
        print(tricks.describe(tricks.find_trick(options.trick)))
    else:
        print(tricks.listing())
    return 0


def schema_command(options: argparse.Namespace, workspace: Workspace) -> int:
    import json

    from goldfold import files
    from goldfold.config import json_schemas

    schemas = json_schemas()
    if options.to is None:
        print(json.dumps(schemas["experiment.schema.json"], indent=2))
        return 0
    for name, schema in schemas.items():
        files.write_json(options.to / name, schema)
        print(f"wrote {options.to / name}")
    return 0
