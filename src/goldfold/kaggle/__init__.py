"""What Goldfold and Kaggle exchange: packs (data sets that a kernel reads), kernels, and downloads."""
