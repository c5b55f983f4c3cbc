"""The notebook twin of a script kernel: the same code, cut into cells at its ``# %%`` lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.errors import BadInput

CELL = re.compile(r"^# %%.*\n", re.MULTILINE)


def make_notebook(script: str, where: object = "kernel") -> dict[str, Any]:
    """A notebook (nbformat 4.4) of a script: its docstring as text, then a code cell for each part between ``# %%`` lines.

    The internet is off and a GPU is on in Kaggle's own metadata. Raises BadInput when the script is not Python.
    """
    try:
        docstring = ast.get_docstring(ast.parse(script)) or ""
    except SyntaxError as error:
        raise BadInput(where, f"not Python ({error.msg}, line {error.lineno})") from None
    _, *parts = CELL.split(script)
    if not parts:
        raise BadInput(where, "has no cells", "begin each with a line '# %%'")
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "metadata": {}, "source": _lines(docstring)}]
    cells += [
        {
            "cell_type": "code",
            "execution_count": None,
            "metadata": {},
            "outputs": [],
            "source": _lines(part.strip("\n")),
        }
        for part in parts
    ]
    return {
        "cells": cells,
        "metadata": {
            "kaggle": {
                "accelerator": "nvidiaTeslaT4",
                "isGpuEnabled": True,
                "isInternetEnabled": False,
                "language": "python",
                "sourceType": "notebook",
            },
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def write_notebook(script: Path, out: Path) -> None:
    """Write the twin of ``script``. Raises BadInput."""
    files.write_json(out, make_notebook(read_script(script), script))


def read_script(path: Path) -> str:
    """The code of a script kernel, or of a notebook's code cells. Raises BadInput."""
    if path.suffix == ".ipynb":
        try:
            cells = files.read_json(path)["cells"]
            return "\n\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code") + "\n"
        except (KeyError, TypeError) as error:
            raise BadInput(path, f"not a notebook ({type(error).__name__}: {error})") from None
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(path, "the file does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read ({error})") from None


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
