"""`python -m service` is `petseg`."""

from service.cli import app

app(prog_name="petseg")
