"""What the hub and its fronts tell each other: plain data.

hub     the process that runs the networks: models, batches, kept features, figures, health
fronts  processes before it that speak HTTP and work on photos; callers meet them alone

| front calls | hub answers |
|---|---|
| predict(PhotoAsk) | PhotoAnswer |
| find(model's key, digest) | (upload, original size) of a photo that is held, or None |
| take, look (client, quota) | whether the client may ask once more, and where it stands |
| operate(scope, request id) | OperationAnswer of /healthz, /readyz or /metrics |

| front notifies | |
|---|---|
| serving() | it listens |
| tell(FrontFigures) | now and then, lest much is lost where it dies |
| charge(client, quota, requests) | a request turned out to hold many |
| released(model's key) | no request needs that model any more |

| hub notifies | |
|---|---|
| catalogue([ServedModel]) | what is served from now on |
| drain() | the end has begun |

| hub calls | front answers |
|---|---|
| figures() | FrontFigures |
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.letterbox import Array
from models.prompts import Prompt
from service.figures import Series
from service.model_facts import ModelFacts

Scores = npt.NDArray[np.float32]
"""Logits [K, s, s]."""


@dataclass(frozen=True)
class ServedModel:
    """One model of the hub."""

    key: int
    """Of this network: another one under the same name has another key."""
    facts: ModelFacts
    photos_together: int
    """As `Pipeline.photos_together`."""


@dataclass(frozen=True)
class FoundPhoto:
    """One that the hub holds."""

    upload: bytes
    original_size: tuple[int, int]
    has_features: bool
    """If not, it must be read again."""


@dataclass(frozen=True)
class PhotoAsk:
    """One photo, read and checked, on its way to the network."""

    model: int
    digest: str
    upload: bytes
    """Empty where the model keeps nothing of it, or where it is in the slot."""
    slot_upload_bytes: int
    """Of the upload, in the slot behind the planes."""
    original_size: tuple[int, int]
    prompt: Prompt
    deadline: float
    """On the clock of `time.monotonic()`, which all processes of a machine share."""
    waits: bool
    """Whether it waits where others are refused, as for `Pipeline.segment`."""
    slot: int | None
    """Where the scores may be put; None where all slots were taken, or are too small."""
    is_in_slot: bool
    """Whether the planes are there."""
    planes: Array | None
    """[3, S, S], where they are not; None for a photo that the hub holds."""


@dataclass(frozen=True)
class PhotoAnswer:
    """What the network made of it."""

    shape: tuple[int, ...]
    """Of the scores, which are float32."""
    scores: Scores | None
    """None where they are in the slot."""
    chosen_prompt: str | None
    run_s: float
    batch_size: int
    encode_s: float
    retry_after_s: int
    """Until half of the model's queue is done."""


@dataclass(frozen=True)
class OperationAnswer:
    """An answer of the hub's own."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    problem: str
    """Slug of the problem that it is; empty for none."""


@dataclass(frozen=True)
class FrontFigures:
    """What a front has counted since it began, and its levels."""

    series: Series
    photos_in_flight: dict[int, int]
    """By the model's key."""
