"""Interactive segmentation measured: clicks placed one after another where the error is largest.

The protocol of Sofiiuk et al. (RITM, 2021). Called by `measure.py` for models that take clicks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from models.base import SegmentationModel
from models.letterbox import Array
from models.prompts import PointPrompt
from training.bootstrap import estimate_mean, estimate_mean_iou, interval
from training.boundary import tolerance_px
from training.dataset import Boundary
from training.encoded_pictures import BATCH_SIZE, CPU, EncodedPictures, PhotoReader
from training.evaluate import count_pixels, model_target
from training.metrics import class_iou, mean_iou
from training.official_layout import PetRecord
from training.preparation import seed_of
from training.prompt_sampling import OBJECT, Click, border_click, next_click

CLICK_COUNTS = (1, 2, 3, 5)
"""Numbers of clicks after which mean IoU is reported."""
IOU_GOALS = (0.85, 0.90)
MAX_CLICKS = 20
"""Where a photo never reaches a goal, its number of clicks counts as this."""

_BOUNDARIES: tuple[Boundary, ...] = ("ignore", "background")


@dataclass(frozen=True)
class ClickScores:
    """What was counted of each of N photos, the animal against all else."""

    after_clicks: dict[Boundary, Tensor]
    """[N, len(CLICK_COUNTS), 2, 2] int64 confusion matrices."""
    border: Tensor
    """[N, 2, 2] int64 after one click near the animal's edge, boundary ring ignored."""
    iou: Tensor
    """[N, MAX_CLICKS] float64 of the animal after each click, boundary ring ignored."""
    skipped: dict[str, str]

    def clicks_needed(self, goal: float) -> Tensor:
        """[N] float64: clicks until the IoU first reaches `goal`, MAX_CLICKS where it never does."""
        reached = self.iou >= goal
        first = reached.double().argmax(1).double() + 1
        return torch.where(reached.any(1), first, float(MAX_CLICKS))

    def summary(self, *, intervals: bool = True) -> dict[str, Any]:
        """Mean IoU by number of clicks, clicks needed (NoC), and the drop for a badly placed click, rounded."""
        by_count: dict[str, Any] = {}
        for place, count in enumerate(CLICK_COUNTS):
            by_count[str(count)] = {
                f"boundary_{key}": estimate_mean_iou(counts[:, place], intervals=intervals)
                for key, counts in self.after_clicks.items()
            }
        needed: dict[str, Any] = {}
        for goal in IOU_GOALS:
            failed = {"failed": round(float((self.iou < goal).all(1).double().mean()), 4)} if len(self.iou) else {}
            needed[f"{100 * goal:.0f}"] = estimate_mean(self.clicks_needed(goal), intervals=intervals) | failed
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {
            "photos": len(self.iou),
            "after_clicks": by_count,
            "noc": needed,
            "border_click": self._border_summary(intervals),
            **skipped,
        }

    def _border_summary(self, intervals: bool) -> dict[str, Any]:
        if len(self.border) == 0:
            return {}
        pair = torch.stack([self.after_clicks["ignore"][:, 0], self.border], dim=1)  # [N, 2, 2, 2]
        result = estimate_mean_iou(self.border, intervals=intervals) | {"drop": round(float(_drop(pair.sum(0))), 4)}
        if intervals:
            result["drop_interval"] = [round(bound, 4) for bound in interval(pair, _drop)]
        return result


def evaluate_clicks(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> ClickScores:
    """Click on `records` of the official layout under `root`, up to MAX_CLICKS times each, in pixels of the photo.

    The first click lies as far inside the animal as can be, each further one as far inside the largest region that is
    wrong. Photos are encoded once and decoded after each click, until there is nothing left to report on them.
    """
    reader = PhotoReader(root, records)
    sessions: list[_Session] = []
    for batch in reader.batches("clicks", batch_size):
        pictures = EncodedPictures(model, [photo.image for _, photo in batch], device)
        opened = [_Session(model_target(photo.label_map, 2)) for _, photo in batch]
        hasty = [_border_prompt(record, session.target) for (record, _), session in zip(batch, opened, strict=True)]
        for session, mask in zip(opened, pictures.masks(hasty), strict=True):
            session.border = count_pixels(_binary(mask), session.target, "ignore", 2)
        _click_through(pictures, opened)
        sessions += opened
    return _collect(sessions, reader.skipped)


@dataclass
class _Session:
    """One photo and all that was clicked on it."""

    target: Array
    """[H, W] {0 background, 1 object, 255 ignored}."""
    mask: Array = field(init=False)
    clicks: list[Click] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    after_clicks: dict[Boundary, list[Tensor]] = field(default_factory=lambda: {key: [] for key in _BOUNDARIES})
    border: Tensor = field(default_factory=lambda: torch.zeros(2, 2, dtype=torch.int64))

    def __post_init__(self) -> None:
        self.mask = np.zeros_like(self.target)

    def is_finished(self) -> bool:
        """Whether further clicks would change no reported figure."""
        return len(self.iou) >= max(CLICK_COUNTS) and max(self.iou) >= max(IOU_GOALS)

    def click(self) -> bool:
        """Place one more click; False where the mask has no error left."""
        placed = next_click(self.target, self.mask)
        if placed is not None:
            self.clicks.append(placed)
        return placed is not None

    def prompt(self) -> PointPrompt:
        return PointPrompt(tuple((x, y) for x, y, _ in self.clicks), tuple(label for *_, label in self.clicks))

    def score(self) -> None:
        """Count the mask as it is now."""
        confusion = count_pixels(self.mask, self.target, "ignore", 2)
        self.iou.append(float(class_iou(confusion)[OBJECT]))
        if len(self.iou) in CLICK_COUNTS:
            self.after_clicks["ignore"].append(confusion)
            self.after_clicks["background"].append(count_pixels(self.mask, self.target, "background", 2))


def _click_through(pictures: EncodedPictures, sessions: Sequence[_Session]) -> None:
    for _ in range(MAX_CLICKS):
        going = [row for row, session in enumerate(sessions) if not session.is_finished()]
        clicked = [row for row in going if sessions[row].click()]
        if clicked:
            masks = pictures.masks([sessions[row].prompt() for row in clicked], clicked)
            for row, mask in zip(clicked, masks, strict=True):
                sessions[row].mask = _binary(mask)
        for row in going:
            sessions[row].score()


def _collect(sessions: Sequence[_Session], skipped: dict[str, str]) -> ClickScores:
    count = len(sessions)
    after = {
        key: torch.stack([matrix for session in sessions for matrix in session.after_clicks[key]])
        if sessions
        else torch.zeros(0, 2, 2, dtype=torch.int64)
        for key in _BOUNDARIES
    }
    iou = torch.zeros(count, MAX_CLICKS, dtype=torch.float64)
    for row, session in enumerate(sessions):
        # Nobody clicked any more, so the mask stayed as it was.
        iou[row] = torch.tensor(session.iou + session.iou[-1:] * (MAX_CLICKS - len(session.iou)))
    border = torch.stack([session.border for session in sessions]) if sessions else torch.zeros(0, 2, 2)
    shaped = {key: value.reshape(count, len(CLICK_COUNTS), 2, 2) for key, value in after.items()}
    return ClickScores(shaped, border.long(), iou, skipped)


def _border_prompt(record: PetRecord, target: Array) -> PointPrompt:
    generator = Generator().manual_seed(seed_of("border", record.name))
    x, y, label = border_click(target, tolerance_px(*target.shape), generator)
    return PointPrompt(((x, y),), (label,))


def _binary(mask: Array) -> Array:
    return np.minimum(mask, np.uint8(1))


def _drop(pair: Tensor) -> Tensor:
    """What mean IoU loses from the first to the second of two confusion matrices [..., 2, K, K]."""
    both = mean_iou(pair)
    return both[..., 0] - both[..., 1]
