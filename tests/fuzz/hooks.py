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
def map_case(context: Any, case: Any) -> Any:
    """Put a loaded model in place of most random names, chosen by all that the request holds.

    By the name alone would not do: most requests with a body are generated with one and the same name.
    """
    if case.path_parameters and "model" in case.path_parameters:
        made = repr((case.path_parameters, case.query, case.body)).encode()
        choice = zlib.crc32(made) % (4 * len(MODELS) + 1)
        if choice < 4 * len(MODELS):
            case.path_parameters["model"] = list(MODELS)[choice % len(MODELS)]
    return case
