"""Photos in batches, encoded once and asked any number of prompts: what every protocol of evaluation begins with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.utils.data import default_collate

from models.base import SegmentationModel
from models.letterbox import Array, Letterbox, image_tensor
from models.prompts import Prompt
from training.official_layout import ExampleError, PetPhoto, PetRecord, read_photo

BATCH_SIZE = 16
CPU = torch.device("cpu")

RecordedPhoto = tuple[PetRecord, PetPhoto]


@dataclass
class PhotoReader:
    """Reads photos of the official layout under `root` in batches and remembers which could not be read."""

    root: Path
    records: Sequence[PetRecord]
    skipped: dict[str, str] = field(default_factory=dict)
    """Photo -> why it was left out; complete once the batches are used up."""

    def batches(self, description: str, size: int = BATCH_SIZE) -> Iterator[list[RecordedPhoto]]:
        """All readable photos in order, at their own size."""
        starts = range(0, len(self.records), size)
        for start in progress(starts, description):
            if batch := [*self._readable(self.records[start : start + size])]:
                yield batch

    def _readable(self, records: Sequence[PetRecord]) -> Iterator[RecordedPhoto]:
        for record in records:
            try:
                yield record, read_photo(self.root, record)
            except ExampleError as error:
                self.skipped[record.name] = str(error)


def progress(starts: range, description: str) -> Iterable[int]:
    """`starts` with a bar on stderr, gone once it is full, so that scores can be piped."""
    return track(starts, description=description, console=Console(stderr=True), transient=True)


class EncodedPictures:
    """A batch of pictures of any size after `encode`; `masks` decodes them under prompts, as often as wanted."""

    def __init__(self, model: SegmentationModel, pictures: Sequence[Image.Image], device: torch.device = CPU) -> None:
        self._model, self._device = model.eval(), device
        self._letterboxes = [Letterbox((each.height, each.width), model.config.image_size) for each in pictures]
        squares = [
            image_tensor(letterbox.apply_image(picture))
            for letterbox, picture in zip(self._letterboxes, pictures, strict=True)
        ]
        with torch.inference_mode():
            images = torch.stack(squares).to(device, memory_format=torch.channels_last)
            self._features = model.encode(images)

    def masks(self, prompts: Sequence[Prompt], rows: Sequence[int] | None = None) -> list[Array]:
        """One mask [H, W] uint8 for each prompt, at the picture's own size; prompts in pixels of the picture.

        `rows` says which picture each prompt is about; None: the first about the first, and so on through all.
        """
        chosen = range(len(self._letterboxes)) if rows is None else rows
        letterboxes = [self._letterboxes[row] for row in chosen]
        asked = [
            self._model.prompt_tensors(prompt, letterbox)
            for prompt, letterbox in zip(prompts, letterboxes, strict=True)
        ]
        with torch.inference_mode():
            batch = {key: value.to(self._device) for key, value in default_collate(asked).items()}
            features = self._features if rows is None else tuple(level[list(rows)] for level in self._features)
            logits = self._model.decode_native(features, batch).float().cpu()
        return [letterbox.restore_mask(scored) for letterbox, scored in zip(letterboxes, logits, strict=True)]
