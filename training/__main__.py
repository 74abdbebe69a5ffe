"""`python -m training` is `petseg-train`."""

from training.cli import main

main()
