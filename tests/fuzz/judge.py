"""What the service owes whoever sends it a file, however broken."""

import io

from PIL import Image

from service.errors import MEDIA_TYPE, PROBLEMS
from tests.fuzz.corpus import Mutant

REFUSALS = frozenset({"unsupported-image", "image-too-large", "body-too-large"})
SECRETS = ("Traceback", "site-packages", "/home/", "/usr/", ".py", "PIL.")


def find_fault(mutant: Mutant, status: int, content_type: str, body: bytes) -> str | None:
    """What is wrong with an answer to `mutant` posted for a PNG mask; None where it is right."""
    if status == 200:
        return _find_fault_of_mask(mutant, content_type, body)
    text = body.decode("utf-8", "replace")
    if content_type != MEDIA_TYPE:
        return f"got {status} with {content_type}, wanted a problem"
    slug = next((slug for slug in PROBLEMS if f'"/problems/{slug}"' in text), "of no known type")
    refusals = REFUSALS if mutant.data else {"invalid-request"}  # no bytes at all: the request lacks its image
    if slug not in refusals or PROBLEMS[slug].status != status:
        return f"got {status} {slug}, wanted 200 or a refusal of the file"
    if mutant.size is not None:
        return f"got {status} {slug} for a sound file of {mutant.size}"
    leaked = [secret for secret in SECRETS if secret in text]
    return f"got {leaked[0]!r} in the answer" if leaked else None


def _find_fault_of_mask(mutant: Mutant, content_type: str, body: bytes) -> str | None:
    if content_type != "image/png":
        return f"got 200 with {content_type}, wanted image/png"
    with Image.open(io.BytesIO(body), formats=["PNG"]) as mask:
        mask.load()
        if mask.mode != "P":
            return f"got a mask of mode {mask.mode}, wanted P"
        if mutant.size is not None and mask.size != mutant.size:
            return f"got a mask of {mask.size}, wanted {mutant.size}"
    return None
