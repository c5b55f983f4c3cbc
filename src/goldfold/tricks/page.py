"""docs/tricks/README.md: the table of all tricks."""

from __future__ import annotations

from goldfold.tricks.registry import RECIPES, SECTIONS, TRICKS
from goldfold.tricks.trick import Trick

HEAD = """\
# The training tricks

Every trick is a switch in the configuration. This page is written by `goldfold tricks --write docs/tricks/README.md`; a test
holds it, the cards and the configuration's keys together. `goldfold tricks` lists the names, `goldfold tricks mixup` shows one.

**Turn one on** with a line of YAML in your experiment, or on the command line as `key.sub=value`:

```yaml
loss: {smoothing: 0.1}
```

**Prove it** on your own folds. `goldfold ablate` ([its page](../ablate.md)) trains with and without, several seeds each, and says
"within noise" where that is all there is:

    goldfold ablate CONFIG --stack warmup,no_bias_decay,label_smoothing,cosine,mixup --seeds 4

`--stack` adds them one by one, `--add` tries each alone, `--drop` leaves each out. Tricks that add a transform are added to
those in `augment.add`. Where a trick has no single switch (–), or its usual values do not suit you, write the settings
yourself: `NAME:key=value;key=value` in quotes. A published gain is a gain on another data set: few tricks help everywhere,
several help only long trainings, and the cards say where each hurts.

**Recipes** are files of settings that belong together, laid between your competition and your own changes. A later file of
the list overrides an earlier one, and your own keys override both:

```yaml
# configs/shells/classic.yaml
extends: [competition.yaml, ../recipes/kaggle-classic.yaml]

train: {epochs: 10}
```
"""

LATER = """\
Not built yet: Fast AutoAugment, GAN-made training images, XNOR-Net's binary convolutions, structured pruning, the comparison
of backbones by accuracy, speed and memory, the best ensemble within a time budget.
"""


def page() -> str:
    """The whole page as Markdown."""
    recipes = ["| recipe | what it is made of | source |", "|---|---|---|"]
    for name, (parts, source) in RECIPES.items():
        recipes.append(f"| [{name}](../../configs/recipes/{name}.yaml) | {parts} | {source} |")
    return "\n".join([HEAD, *recipes, "", table(), "", LATER])


def table() -> str:
    """Each row of the catalogue with the tricks that serve it, by section, as Markdown."""
    lines = list[str]()
    for letter, title in SECTIONS.items():
        lines += [*([""] if lines else []), f"## {letter}. {title}", ""]
        lines += ["| catalogue | trick | config keys | card | default | source |", "|---|---|---|---|---|---|"]
        above = ""
        for trick in (trick for trick in TRICKS.values() if trick.section == letter):
            lines.append(_line(trick, repeats=trick.row == above))
            above = trick.row
    return "\n".join(lines)


def _line(trick: Trick, repeats: bool) -> str:
    cells = [
        "″" if repeats else trick.row,
        f"`{trick.name}`" if trick.on else f"`{trick.name}` –",
        ", ".join(f"`{key}`" for key in trick.keys),
        f"[{trick.card}]({trick.card}.md)",
        trick.default,
        trick.source,
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
