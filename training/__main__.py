"""`python -m training` is `petseg-train`."""

from training.cli import app

app(prog_name="petseg-train")
