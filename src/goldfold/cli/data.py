"""A new competition's data: fetched, and read for a first configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_data(commands: Commands) -> None:
    data = commands.group("data", "fetch a competition's data, or guess its configuration from them")
    download = data.add("download", download_command, "download a competition from Kaggle and unpack it, whole or not")
    download.add_argument("slug", metavar="SLUG", help="the last part of kaggle.com/competitions/<slug>")
    download.add_argument("--to", type=Path, metavar="DIR", help="a folder that does not exist; default: data/SLUG")
    guess = data.add("guess", guess_command, "read a competition's CSVs and images and propose its configuration")
    guess.add_argument("folder", type=Path, metavar="DIR", help="what the competition ships, such as data/shells")
    guess.add_argument("--name", metavar="SLUG", help="the competition's slug; default: the folder's name")
    guess.add_argument("--out", type=Path, metavar="YAML", help="write it to a new file, too")


def download_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.kaggle.download import competition_slug, download_competition

    slug = competition_slug(options.slug)
    found = download_competition(slug, options.to or workspace.root / "data" / slug, workspace.root)
    for path in sorted(found.iterdir()):
        if path.is_dir():
            print(f"{path}/  {sum(1 for file in path.rglob('*') if file.is_file())} files")
        else:
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    print(f"next: goldfold data guess {found}")
    return 0


def guess_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.errors import BadInput
    from goldfold.kaggle.guess import guess_competition, write_guess

    if options.out is not None and options.out.exists():
        raise BadInput(options.out, "it is there already", "name a new file")
    text = guess_competition(options.folder, workspace.root, options.name).to_yaml()
    print(text, end="")
    if options.out is not None:
        write_guess(options.out, text)
        print(f"wrote {options.out}")
    return 0
