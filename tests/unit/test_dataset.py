import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from models.prompts import PointPrompt, Prompt, PromptKind, PromptTensors, point_tensors
from training.augmentation import Augmentation, AugmentationConfig
from training.dataset import BREEDS, PetDataset, Sample
from training.preparation import prepare, read_manifest
from training.prompt_sampling import SamplingConfig, make_sampler


def clicks(prompt: Prompt) -> PromptTensors:
    assert isinstance(prompt, PointPrompt)
    return point_tensors(prompt.points, prompt.labels)


@pytest.fixture
def clicked(prepared_pets: Path) -> Callable[[], PetDataset]:
    """Everything random at once: augmentation, collages and clicks."""
    return lambda: PetDataset(
        prepared_pets,
        "train",
        augment=Augmentation(AugmentationConfig()),
        sampler=make_sampler(PromptKind.POINTS, SamplingConfig()),
        make_prompt=clicks,
        seed=5,
        collage_probability=0.5,
    )


def flat(sample: Sample) -> list[Tensor]:
    return [sample["image"], sample["target"], *(sample["prompt"][key] for key in sorted(sample["prompt"]))]


def every(dataset: PetDataset) -> list[Sample]:
    return [dataset[index] for index in range(len(dataset))]


def equal(one: Sample, other: Sample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def test_an_example_is_the_prepared_pair(prepared_pets: Path) -> None:
    dataset = PetDataset(prepared_pets, "train")
    image, label = dataset.read(3)
    sample = dataset[3]
    assert sample["image"].dtype == torch.float32 and sample["target"].dtype == torch.int64
    assert torch.equal(sample["image"], image.float() / 255)
    assert torch.equal(sample["target"], label.long())
    assert sample["prompt"] == {}
    assert set(label.flatten().tolist()) == {0, dataset.records[3].species, 255}


def test_an_example_names_the_breeds_in_its_picture(prepared_pets: Path) -> None:
    dataset = PetDataset(prepared_pets, "train")
    for index, record in enumerate(dataset.records):
        named = dataset[index]["breeds"]
        assert named[BREEDS[record.breed]] == 1 and named.sum() == 1
    collages = every(PetDataset(prepared_pets, "train", collage_probability=1.0, seed=1))
    assert {0.5, 1.0} == {sample["breeds"].max().item() for sample in collages}  # of one breed, or of two
    assert all(sample["breeds"].sum() == 1 for sample in collages)


def test_a_breed_of_ones_own_and_an_empty_picture_are_named_nothing(prepared_pets: Path) -> None:
    dataset = PetDataset(prepared_pets, "train")
    dataset.records = (dataset.records[0].model_copy(update={"breed": "lynx"}), *dataset.records[1:])
    assert not dataset[0]["breeds"].any()
    dataset.augment = lambda image, label, generator: (image, torch.zeros_like(label))  # type: ignore[assignment]
    assert not dataset[1]["breeds"].any()


def test_large_photos_are_repeated_with_other_draws(prepared_pets: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared_pets, tmp_path / "prepared")
    manifest = read_manifest(folder)
    grown = manifest.examples[0].model_copy(update={"original_size": (375, 500)})
    assert grown.split == "train"
    changed = manifest.model_copy(update={"examples": (grown, *manifest.examples[1:])})
    (folder / "manifest.json").write_text(changed.model_dump_json())

    once = PetDataset(folder, "train")
    thrice = PetDataset(folder, "train", augment=Augmentation(AugmentationConfig()), repeat_large=3)
    assert list(thrice.records) == [*once.records, grown, grown]
    first, second, third = (thrice[index]["image"] for index in (0, len(once), len(once) + 1))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_splits_hold_the_manifests_examples(prepared_pets: Path) -> None:
    for split in ("train", "validation", "test"):
        wanted = [e.name for e in read_manifest(prepared_pets).examples if e.split == split]
        dataset = PetDataset(prepared_pets, split)
        assert [record.name for record in dataset.records] == wanted
        assert len(dataset) == len(wanted) == len(every(dataset))


def test_boundary_as_background(prepared_pets: Path) -> None:
    ignored = PetDataset(prepared_pets, "validation")[0]["target"]
    counted = PetDataset(prepared_pets, "validation", boundary="background")[0]["target"]
    assert (ignored == 255).any()
    assert (counted[ignored == 255] == 0).all()
    assert torch.equal(counted[ignored != 255], ignored[ignored != 255])


def test_examples_depend_on_seed_epoch_and_index_alone(clicked: Callable[[], PetDataset]) -> None:
    unbroken, resumed = clicked(), clicked()
    unbroken.set_epoch(0)
    every(unbroken)
    for dataset in (unbroken, resumed):
        dataset.set_epoch(4)
    forwards = every(unbroken)
    backwards = [resumed[index] for index in reversed(range(len(resumed)))]
    assert all(equal(one, other) for one, other in zip(forwards, reversed(backwards), strict=True))


def test_epochs_and_seeds_differ(clicked: Callable[[], PetDataset], prepared_pets: Path) -> None:
    dataset = clicked()
    first = dataset[0]
    dataset.set_epoch(1)
    assert not equal(first, dataset[0])
    jitter = Augmentation(AugmentationConfig())
    one, other = (PetDataset(prepared_pets, "train", augment=jitter, seed=seed) for seed in (1, 2))
    assert not equal(one[0], other[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine may have cores
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_live_on_give_what_none_would(clicked: Callable[[], PetDataset], workers: int) -> None:
    dataset = clicked()
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads; torch's loader forks all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = DataLoader(dataset, batch_size=5, num_workers=workers, persistent_workers=True)
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            alone = clicked()
            alone.set_epoch(epoch)
            wanted = DataLoader(alone, batch_size=5)
            assert all(equal(one, other) for one, other in zip(loader, wanted, strict=True))
        del loader


def test_reading_from_disk_gives_what_memory_gives(prepared_pets: Path) -> None:
    kept, read = (PetDataset(prepared_pets, "train", in_memory=in_memory) for in_memory in (True, False))
    assert all(equal(one, other) for one, other in zip(every(kept), every(read), strict=True))


def test_augmenting_writes_to_no_prepared_pixel(clicked: Callable[[], PetDataset]) -> None:
    dataset = clicked()
    before = torch.stack([torch.cat((i, lab[None])) for i, lab in map(dataset.read, range(len(dataset)))])
    for epoch in range(3):
        dataset.set_epoch(epoch)
        every(dataset)
    after = torch.stack([torch.cat((i, lab[None])) for i, lab in map(dataset.read, range(len(dataset)))])
    assert torch.equal(before, after)


def test_every_model_collates(clicked: Callable[[], PetDataset], prepared_pets: Path) -> None:
    plain = PetDataset(prepared_pets, "train")
    batch = default_collate([plain[0], plain[1]])
    assert batch["prompt"] == {} and batch["image"].shape == (2, 3, 48, 48)
    prompted = clicked()
    batch = default_collate([prompted[0], prompted[1]])
    assert batch["prompt"]["points"].shape == (2, 64, 2)


def test_only_training_reads_offline_copies(raw_pets: Path, tmp_path: Path) -> None:
    manifest = prepare(raw_pets, tmp_path / "out", 32, copies=2, validation_fraction=0.25)
    train, validation = (PetDataset(tmp_path / "out", split) for split in ("train", "validation"))
    assert len(train) == 3 * len({record.photo for record in train.records})
    assert all(record.name == record.photo for record in validation.records)
    assert len({e.photo for e in manifest.examples if e.split == "validation"}) == len(validation)


def test_an_empty_split_and_an_index_beyond_the_end_are_refused(raw_pets: Path, tmp_path: Path) -> None:
    prepare(raw_pets, tmp_path / "out", 32, splits=("trainval",))
    with pytest.raises(ValueError, match="no test examples"):
        PetDataset(tmp_path / "out", "test")
    with pytest.raises(IndexError, match="got index 99"):
        PetDataset(tmp_path / "out", "train")[99]
