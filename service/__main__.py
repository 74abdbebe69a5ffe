"""`python -m service` and the console script `petseg`."""

import sys

PHOTO_COMMANDS = ("segment", "models")


def main() -> None:
    """Run the command line; the commands that may talk to a server start without what a server needs."""
    if sys.argv[1:2] and sys.argv[1] in PHOTO_COMMANDS:
        from service.photo_cli import app
    else:
        from service.cli import app
    app(prog_name="petseg")


if __name__ == "__main__":
    main()
