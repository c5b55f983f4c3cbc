"""The house of the design: imports only go down, torch is kept out of the words, rooms stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "goldfold"
LAYERS = (
    ("errors", "files", "progress", "seeds", "cores", "npy", "config", "records", "tasks", "paths", "tricks"),
    (
        "folds",
        "metrics",
        "images",
        "augment",
        "mix",
        "losses",
        "schedules",
        "tta",
        "balance",
        "metadata",
        "lr_range",
        "memory",
    ),
    (
        "machine",
        "measuring",
        "data",
        "models",
        "optim",
        "averaging",
        "pruning",
        "features",
        "bundle",
        "teaching",
        "tracking",
    ),
    ("training", "forward", "predict"),
    ("rounds", "ensemble", "submission", "inference", "kaggle"),
    ("pipeline",),
    ("demo", "canary"),
    ("cli",),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    """Every module imported in the file, inside functions and type checks too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide a room's name"
            assert node.module is not None
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in LAYER, f"the room '{room}' has no layer"
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "goldfold" or len(parts) < 2 or parts[1] not in LAYER or parts[1] == room:
            continue
        assert LAYER[parts[1]] <= LAYER[room], (
            f"{path.name} (layer {LAYER[room]}) imports {name} (layer {LAYER[parts[1]]})"
        )


def test_there_are_no_import_cycles_between_rooms() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        targets = {name.split(".")[1] for name in imported_modules(path) if name.startswith("goldfold.")}
        arrows.setdefault(room_of(path), set()).update(targets & LAYER.keys() - {room_of(path)})

    def reach(room: str, seen: tuple[str, ...]) -> None:
        assert room not in seen, f"rooms import each other: {' -> '.join((*seen, room))}"
        for target in arrows.get(room, ()):
            reach(target, (*seen, room))

    for room in arrows:
        reach(room, ())


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in LAYERS[0]], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_words_know_no_torch_at_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name if isinstance(node, ast.Import) else str(node.module) for node in top for alias in node.names]
    assert not [name for name in names if name.split(".")[0] in ("torch", "timm", "torchvision", "accelerate")]


def test_only_pipeline_and_above_receive_the_whole_config() -> None:
    for path in FILES:
        if LAYER.get(room_of(path), 9) < LAYER["pipeline"] and room_of(path) != "config":
            assert not [
                name
                for name in imported_modules(path)
                if name in ("goldfold.config.Config", "goldfold.config.schema.Config")
            ]


def test_no_room_is_a_drawer() -> None:
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "common", "misc")
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, f"{path.name} wants to become a folder"


def test_help_imports_no_torch() -> None:
    code = "import sys; from goldfold.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'pandas' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False False"
