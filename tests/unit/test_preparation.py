import hashlib
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.letterbox import Letterbox
from training.official_layout import PetRecord, image_path, read_photo, read_records, trimap_path
from training.preparation import Report, assign_splits, fingerprint, prepare, read_manifest


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_squares_are_the_letterboxed_photos(raw_pets: Path, prepared_pets: Path) -> None:
    manifest = read_manifest(prepared_pets)
    records = {record.name: record for record in read_records(raw_pets, "list")}
    assert {example.name for example in manifest.examples} == set(records)
    for example in manifest.examples[:6]:
        photo = read_photo(raw_pets, records[example.name])
        letterbox = Letterbox(example.original_size, manifest.settings.image_size)
        stored = [Image.open(prepared_pets / folder / f"{example.name}.png") for folder in ("images", "labels")]
        assert (np.asarray(stored[0]) == letterbox.apply_image(photo.image)).all()
        assert (np.asarray(stored[1]) == letterbox.apply_label_map(photo.label_map)).all()


def test_digests_are_of_the_files(prepared_pets: Path) -> None:
    for example in read_manifest(prepared_pets).examples:
        for folder, digest in (("images", example.image_sha256), ("labels", example.label_sha256)):
            data = (prepared_pets / folder / f"{example.name}.png").read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest


def test_the_official_lists_keep_apart(raw_pets: Path, prepared_pets: Path) -> None:
    official = {record.name for record in read_records(raw_pets, "test")}
    splits = Counter(example.split for example in read_manifest(prepared_pets).examples)
    assert {e.name for e in read_manifest(prepared_pets).examples if e.split == "test"} == official
    assert splits == {"train": 18, "validation": 6, "test": 12}


def test_preparing_again_gives_the_same_bytes(raw_pets: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        prepare(raw_pets, tmp_path / name, 32, copies=2, seed=3)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert fingerprint(tmp_path / "first") == fingerprint(tmp_path / "second")
    prepare(raw_pets, tmp_path / "third", 32, copies=2, seed=4)
    assert fingerprint(tmp_path / "first") != fingerprint(tmp_path / "third")


def test_a_prepared_folder_is_left_as_it_is(raw_pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(raw_pets, out, 32)
    marker = out / "images" / "untouched"
    marker.touch()
    prepare(raw_pets, out, 32)
    assert marker.exists()
    with pytest.raises(ValueError, match="image_size=32 instead of 48; choose another folder or delete"):
        prepare(raw_pets, out, 48)


def test_what_a_killed_run_left_behind_is_replaced(raw_pets: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.partial" / "images"
    left.mkdir(parents=True)
    (left / "stale.png").touch()
    prepare(raw_pets, tmp_path / "out", 32)
    assert not (tmp_path / "out" / "images" / "stale.png").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_of_other_files_is_refused(raw_pets: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="choose an empty folder"):
        prepare(raw_pets, tmp_path, 32)
    assert (tmp_path / "thesis.txt").exists()


def test_copies_of_a_photo_never_cross_splits(raw_pets: Path, tmp_path: Path) -> None:
    manifest = prepare(raw_pets, tmp_path / "out", 32, copies=10, validation_fraction=0.15, test_fraction=0.15,
                       splits=("trainval",))  # fmt: skip
    splits, names = defaultdict(set), defaultdict(set)
    for example in manifest.examples:
        splits[example.photo].add(example.split)
        names[example.photo].add(example.name)
    assert len(splits) == 24
    assert all(len(of_photo) == 1 for of_photo in splits.values())
    assert all(len(of_photo) == 11 for of_photo in names.values())
    assert {split for of_photo in splits.values() for split in of_photo} == {"train", "validation", "test"}
    # Copies are pictures of their own, not the photo under eleven names.
    digests = {example.image_sha256 for example in manifest.examples}
    assert len(digests) > 0.9 * len(manifest.examples)


def test_the_official_test_list_gets_no_copies(raw_pets: Path, tmp_path: Path) -> None:
    manifest = prepare(raw_pets, tmp_path / "out", 32, copies=1)
    assert all(example.name == example.photo for example in manifest.examples if example.split == "test")


def test_faulty_photos_are_skipped_and_named(raw_pets: Path, tmp_path: Path) -> None:
    root = shutil.copytree(raw_pets, tmp_path / "raw")
    corrupt, empty, mismatch, gif, missing, tiny = [record.name for record in read_records(root, "trainval")[:6]]
    image_path(root, corrupt).write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    with Image.open(image_path(root, empty)) as photo:
        Image.new("L", photo.size, 2).save(trimap_path(root, empty))
    Image.new("L", (5, 5), 1).save(trimap_path(root, mismatch))
    with Image.open(image_path(root, gif)) as photo:
        indexed = photo.convert("P")
    indexed.save(image_path(root, gif), "GIF")
    trimap_path(root, missing).unlink()
    Image.new("RGB", (640, 480)).save(image_path(root, tiny))
    speck = np.full((480, 640), 2, np.uint8)
    speck[0, 0] = 1  # nearest-neighbour sampling at 32 px never reads the very corner
    Image.fromarray(speck).save(trimap_path(root, tiny))

    manifest = prepare(root, tmp_path / "out", 32)
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    reasons = {
        corrupt: "corrupt photo", empty: "empty", mismatch: "size mismatch", missing: "missing file", tiny: "vanishes"
    }  # fmt: skip
    assert set(report.skipped) == set(reasons)
    assert all(reason in report.skipped[name] for name, reason in reasons.items())
    assert set(report.noted) == {gif} and "GIF" in report.noted[gif]
    assert {example.name for example in manifest.examples} == {r.name for r in read_records(root, "list")} - set(
        reasons
    )
    assert sum(report.counts.values()) == len(manifest.examples)


def test_nothing_usable_is_an_error(raw_pets: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    shutil.copytree(raw_pets / "annotations", root / "annotations")
    with pytest.raises(ValueError, match="none of the 36 photos"):
        prepare(root, tmp_path / "out", 32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": -1}, "copies=-1"),
        ({"validation_fraction": 1.0}, "leave something"),
        ({"test_fraction": 0.1}, "exclude"),
    ],
)
def test_impossible_settings_are_refused(
    raw_pets: Path, tmp_path: Path, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(raw_pets, tmp_path / "out", 32, **options)  # type: ignore[arg-type]  # the values are what is tested


def test_a_missing_or_foreign_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="petseg-train prepare"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(ValueError, match="not a manifest"):
        read_manifest(tmp_path)


def test_fingerprint_reads_the_training_part_alone(raw_pets: Path, tmp_path: Path) -> None:
    prepare(raw_pets, tmp_path / "both", 32)
    prepare(raw_pets, tmp_path / "trainval", 32, splits=("trainval",))
    assert fingerprint(tmp_path / "both") == fingerprint(tmp_path / "trainval")


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    validation=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 5),
)
def test_splits_are_stratified_by_breed(counts: list[int], validation: float, test: float, seed: int) -> None:
    records = [PetRecord(f"b{b}_{i}", f"b{b}", 1) for b, count in enumerate(counts) for i in range(count)]
    splits = assign_splits(records, validation, test, seed)
    assert splits == assign_splits(reversed(records), validation, test, seed)
    assert splits.keys() == {record.name for record in records}
    for breed, count in enumerate(counts):
        drawn = Counter(splits[f"b{breed}_{i}"] for i in range(count))
        assert abs(drawn["validation"] - count * validation) <= 1
        assert abs(drawn["test"] - count * test) <= 2
