"""``goldfold data guess``: a competition's CSVs and images, and the configuration that they suggest."""

from goldfold.kaggle.guess.propose import guess_competition
from goldfold.kaggle.guess.section import Finding, Guess, write_guess

__all__ = ["Finding", "Guess", "guess_competition", "write_guess"]
