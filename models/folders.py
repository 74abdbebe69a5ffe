"""Where the package keeps its own files. Imports nothing: what reads them takes seconds to import."""

from pathlib import Path

CHECKPOINT_FOLDER = Path(__file__).parent / "checkpoints"
"""The checkpoints that ship with the package."""

BACKBONE_FOLDER = CHECKPOINT_FOLDER / "backbones"
"""The backbones that ship with it."""

BACKBONE_FOLDER_VARIABLE = "PETSEG_BACKBONE_FOLDER"
"""Environment variable naming a folder that is searched before `BACKBONE_FOLDER`."""
