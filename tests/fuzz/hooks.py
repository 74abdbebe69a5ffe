"""What schemathesis cannot know from the document: the models' names, and what an image is. Read by its command."""

import zlib
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.fuzz.corpus import make_mutant, sound_files
from tests.fuzz.server import MODELS

MAX_INDEX = 10_000

images = st.one_of(
    st.sampled_from(sound_files()),
    st.integers(0, MAX_INDEX).map(lambda index: make_mutant(0, index).data[: 1 << 16]),
    st.binary(max_size=300),
)
schemathesis.openapi.format("binary", images)
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, images)


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Put a loaded model in place of three of four random names."""
    if path_parameters and "model" in path_parameters:
        choice = zlib.crc32(repr(path_parameters["model"]).encode()) % (len(MODELS) + 1)
        if choice < len(MODELS):
            return {**path_parameters, "model": list(MODELS)[choice]}
    return path_parameters
