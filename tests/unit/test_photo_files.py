"""Which photos a command means, and results that are whole or not there."""

from pathlib import Path

import pytest

from service import photo_files
from service.photo_files import find_photos, write_whole


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "deep/er/c.webp", "deep/a.jpg", "masks/a.png", "raw"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def names(given: list[str], out: str = "photos/masks") -> list[str]:
    return [str(photo.name) for photo in find_photos(given, Path(out))]


def test_a_folder_is_searched_to_the_bottom_but_not_its_results(folder: Path) -> None:
    assert names(["photos"]) == ["a.jpg", "b.PNG", "deep/a.jpg", "deep/er/c.webp"]
    assert "masks/a.png" in names(["photos"], out="elsewhere")


def test_globs_and_files(folder: Path) -> None:
    assert names(["photos/*.jpg"]) == ["a.jpg"]
    assert names(["photos/**/*.jpg"]) == ["a.jpg", "deep/a.jpg"]
    assert names([f"{folder}/deep/*/*"]) == ["c.webp"]
    assert names(["photos/raw", "photos/b.PNG"]) == ["b.PNG", "raw"]


def test_each_photo_is_named_once_from_the_common_folder(folder: Path) -> None:
    assert names(["photos/a.jpg", "photos/deep", "photos/*.jpg"]) == ["a.jpg", "deep/a.jpg", "deep/er/c.webp"]


def test_a_link_is_named_as_it_was_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cat.jpg").write_bytes(b"x")
    (folder / "deep" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "cat.jpg")
    assert names(["photos/deep"]) == ["a.jpg", "er/c.webp", "link.jpg"]
    assert names(["photos/deep/link.jpg"]) == ["link.jpg"]
    (tmp_path / "album").symlink_to(folder / "deep")
    assert names(["album"]) == ["a.jpg", "er/c.webp", "link.jpg"]


def test_a_photo_and_a_link_to_it_are_one_photo(folder: Path) -> None:
    (folder / "z.jpg").symlink_to(folder / "a.jpg")
    assert names(["photos/*.jpg"]) == ["a.jpg"]


def test_a_link_into_the_results_is_no_photo(folder: Path) -> None:
    (folder / "made.png").symlink_to(folder / "masks" / "a.png")
    assert "made.png" not in names(["photos"])


def test_a_folder_may_be_named_by_a_way_round(folder: Path) -> None:
    assert names(["photos/deep/../deep/a.jpg", "photos/deep"]) == ["a.jpg", "er/c.webp"]


def test_photos_that_differ_in_their_ending_alone_keep_it(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"x")
    stems = {str(photo.name): str(photo.stem) for photo in find_photos(["photos/*"], Path("out"))}
    assert stems == {"a.jpg": "a.jpg", "a.png": "a.png", "b.PNG": "b"}


@pytest.mark.parametrize("given", ["nowhere", "photos/*.tif", "photos/masks"])
def test_what_names_no_photo_is_said(folder: Path, given: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no photo there, wanted a file, a folder or a glob with \.bmp, "):
        find_photos([given], Path("photos/masks"))


def test_results_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "mask.png"
    write_whole(path, b"first")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o666 & ~photo_files._umask()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
