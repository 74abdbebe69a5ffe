import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from models.letterbox import Array
from training.official_layout import (
    CAT,
    DOG,
    ExampleError,
    OfficialList,
    PetRecord,
    download,
    image_path,
    label_map,
    read_photo,
    read_records,
    records_fingerprint,
    trimap_path,
)

RECORD = PetRecord("american_bulldog_10", "american_bulldog", DOG)


def write_pair(root: Path, image: Image.Image, trimap: Array, image_format: str = "JPEG", **options: object) -> None:
    for path in (image_path(root, RECORD.name), trimap_path(root, RECORD.name)):
        path.parent.mkdir(parents=True, exist_ok=True)
    image.save(image_path(root, RECORD.name), image_format, **options)
    Image.fromarray(trimap).save(trimap_path(root, RECORD.name))


def test_records_carry_breed_and_species_of_the_list(tmp_path: Path) -> None:
    lists = tmp_path / "annotations"
    lists.mkdir()
    (lists / "list.txt").write_text("#Image CLASS-ID SPECIES\nMaine_Coon_7 20 1 7\namerican_bulldog_10 2 2 1\n\n")
    assert read_records(tmp_path, "list") == (PetRecord("Maine_Coon_7", "Maine_Coon", CAT), RECORD)


@pytest.mark.parametrize("line", ["beagle 5 2 4", "beagle_1 5 3 4", "beagle_1 5 2", "_1 5 2 4", "beagle_x 5 2 4"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "list.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"list\.txt: got the line .*wanted"):
        read_records(tmp_path, "list")


@pytest.mark.parametrize(("split", "error"), [("trainval", FileNotFoundError), ("validation", ValueError)])
def test_a_missing_or_unknown_list_is_refused(tmp_path: Path, split: OfficialList, error: type[Exception]) -> None:
    with pytest.raises(error, match=split):
        read_records(tmp_path, split)


def test_a_fingerprint_is_of_names_and_bytes(tmp_path: Path) -> None:
    write_pair(tmp_path, Image.new("RGB", (4, 4), (200, 10, 10)), np.ones((4, 4), np.uint8))
    first = records_fingerprint(tmp_path, [RECORD])
    assert first != records_fingerprint(tmp_path, [])
    write_pair(tmp_path, Image.new("RGB", (4, 4), (200, 10, 10)), np.full((4, 4), 2, np.uint8))
    assert records_fingerprint(tmp_path, [RECORD]) != first


def test_label_map_known_answer() -> None:
    trimap = np.array([[1, 2, 3], [2, 1, 3]], np.uint8)
    assert label_map(trimap, CAT).tolist() == [[1, 0, 255], [0, 1, 255]]
    assert label_map(trimap, DOG).tolist() == [[2, 0, 255], [0, 2, 255]]


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8))), st.sampled_from([CAT, DOG]))
def test_label_map_maps_each_value_or_refuses(trimap: Array, species: int) -> None:
    if set(trimap.ravel()) <= {1, 2, 3} and 1 in trimap:
        labels = label_map(trimap, species)
        assert labels.dtype == np.uint8
        assert ((labels == species) == (trimap == 1)).all()
        assert ((labels == 255) == (trimap == 3)).all()
    else:
        with pytest.raises(ExampleError):
            label_map(trimap, species)


def test_an_empty_trimap_is_refused() -> None:
    with pytest.raises(ExampleError, match="empty"):
        label_map(np.full((4, 4), 2, np.uint8), CAT)


def test_a_gif_named_jpg_is_read_by_its_content(tmp_path: Path) -> None:
    write_pair(tmp_path, Image.new("P", (6, 4)), np.ones((4, 6), np.uint8), "GIF")
    photo = read_photo(tmp_path, RECORD)
    assert (photo.stored_format, photo.image.mode, photo.image.size) == ("GIF", "RGB", (6, 4))


def test_trimap_turns_upright_with_its_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: upright after a quarter turn clockwise
    trimap = np.full((4, 6), 2, np.uint8)
    trimap[0, 0] = 1
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    write_pair(tmp_path, Image.fromarray(pixels), trimap, "PNG", exif=exif)
    photo = read_photo(tmp_path, RECORD)
    assert photo.label_map.shape == (6, 4)
    assert (photo.label_map == DOG).tolist() == (np.asarray(photo.image)[..., 0] == 255).tolist()


def test_faults_are_named(tmp_path: Path) -> None:
    good = Image.new("RGB", (6, 4))
    with pytest.raises(ExampleError, match=r"missing file american_bulldog_10\.jpg"):
        read_photo(tmp_path, RECORD)
    write_pair(tmp_path, good, np.ones((5, 6), np.uint8))
    with pytest.raises(ExampleError, match="size mismatch: photo 6 x 4, trimap 6 x 5"):
        read_photo(tmp_path, RECORD)
    write_pair(tmp_path, good, np.ones((4, 6, 3), np.uint8))
    with pytest.raises(ExampleError, match="mode RGB"):
        read_photo(tmp_path, RECORD)
    trimap_path(tmp_path, RECORD.name).write_bytes(b"not a picture")
    with pytest.raises(ExampleError, match="corrupt trimap"):
        read_photo(tmp_path, RECORD)
    trimap_path(tmp_path, RECORD.name).unlink()
    with pytest.raises(ExampleError, match=r"missing file american_bulldog_10\.png"):
        read_photo(tmp_path, RECORD)
    write_pair(tmp_path, good, np.ones((4, 6), np.uint8))
    path = image_path(tmp_path, RECORD.name)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ExampleError, match="corrupt photo"):
        read_photo(tmp_path, RECORD)
    path.unlink()
    path.mkdir()
    with pytest.raises(ExampleError, match="unreadable file"):
        read_photo(tmp_path, RECORD)


def test_the_synthetic_set_is_in_the_official_layout(raw_pets: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(raw_pets, tmp_path / "copy")
    for record in read_records(copied, "list"):
        assert read_photo(copied, record).stored_format == "JPEG"


def test_download_asks_torchvision_for_the_official_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def downloader(root: Path, **options: object) -> None:
        asked.append({"root": root, **options})

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", downloader)
    assert download(tmp_path) == tmp_path / "oxford-iiit-pet"
    assert asked == [{"root": tmp_path, "split": "trainval", "target_types": "segmentation", "download": True}]
