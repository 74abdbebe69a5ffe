"""`python -m service` and the console script `petseg`."""

import os
import signal
import sys
from types import FrameType

PHOTO_COMMANDS = ("segment", "models")


def main() -> None:
    """Run the command line; the commands that may talk to a server start without what a server needs."""
    if sys.argv[1:2] and sys.argv[1] in PHOTO_COMMANDS:
        from service.photo_cli import app
    else:
        if sys.argv[1:2] == ["serve"]:
            # Until the server listens. As a container's process 1 it would otherwise not notice a SIGTERM, start, and
            # be killed; a Ctrl-C would end in a trace of whatever is being imported.
            for sign in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sign, leave)
        from service.cli import app
    app(prog_name="petseg")


def leave(number: int, frame: FrameType | None) -> None:
    """End before anything was accepted; after a Ctrl-C as shells expect."""
    os._exit(128 + number if number == signal.SIGINT else os.EX_OK)


if __name__ == "__main__":
    main()
