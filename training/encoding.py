"""A model's frozen encoder -> the feature cache of a data set, by all processes of a run together.

Called by `train.py` at the start of a stage, and by `petseg-train features` beforehand.
"""

import math

import torch
from lightning_fabric import Fabric
from torch import Tensor

from models.base import ArchitectureConfig, Features, SegmentationModel
from training.dataset import PetDataset
from training.feature_cache import Content, FeatureCache, Shapes
from training.preparation import examples_digest
from training.run_log import RunLog


def encode_missing(
    cache: FeatureCache, model: SegmentationModel, fabric: Fabric, log: RunLog, batch_size: int, workers: int = 0
) -> None:
    """Encode the views of `cache` that are not on disk yet; says what all of them take there.

    workers: processes that draw the views. ValueError where the disk has no room.
    """
    log.say(f"features: {cache.need()} under {cache.folder}, {cache.count_missing()} views to be encoded")
    cache.check_space()
    fabric.barrier()
    arithmetic = fabric.strategy.precision

    @torch.no_grad()
    def encode(images: Tensor) -> Features:
        # As a wrapped model's forward would, but without its collectives: processes have different shares.
        images = fabric.to_device(images).contiguous(memory_format=torch.channels_last)
        with arithmetic.forward_context():
            return model.encode(arithmetic.convert_input(images))

    model.eval()
    # Then once more by itself: on machines that share no disk, the others' files are missing here.
    for rank, processes in ((fabric.global_rank, fabric.world_size), (0, 1)):
        count = math.ceil(cache.count_missing(rank, processes) / batch_size)
        with log.progress("encoding views", count) as bar:
            cache.fill(encode, batch_size, workers=workers, rank=rank, processes=processes, on_batch=bar.advance)
        fabric.barrier()


def describe(model: SegmentationModel, pets: PetDataset, precision: str) -> Content:
    """What the cached rows of `pets` depend on. ValueError where the encoder is not frozen."""
    digest = model.encoder_digest()
    if digest is None:
        raise ValueError(f"got cache_features for {type(model).__name__}, whose encoder learns; wanted a frozen one")
    return Content(
        encoder_digest=digest,
        examples_sha256=examples_digest(pets.records),
        augmentation=pets.augment.config if pets.augment else None,
        collage_probability=pets.collage_probability,
        seed=pets.seed,
        precision=precision,
        shapes=feature_shapes(type(model), model.config, pets.image_size),
    )


def feature_shapes(architecture: type[SegmentationModel], config: ArchitectureConfig, image_size: int) -> Shapes:
    """The shapes of the features at this image size, from a network without weights."""
    with torch.device("meta"):
        model = architecture(config).eval()
        images = torch.zeros(1, 3, image_size, image_size)
        features = model.encode(images)
    shapes = tuple(None if feature is images else tuple(feature.shape[1:]) for feature in features)
    return Shapes.model_validate({"image_size": image_size, "features": shapes})
