"""Keys are kept as hashes, found by content, and follow their file."""

import hmac
import logging
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from service.api_keys import ApiKey, KeyFileError, KeyRing, hash_key, new_key, read_keys

TODAY = datetime.now(UTC).date()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_new_key_is_found_and_nowhere_kept(path: Path) -> None:
    secret, key = new_key(path, "lab", requests_per_minute=60, expires=TODAY + timedelta(days=1))
    ring = KeyRing(path)
    assert (ring.find(secret), len(ring)) == (key, 1)
    assert key == ApiKey(
        name="lab", sha256=hash_key(secret), created=TODAY, expires=TODAY + timedelta(days=1), requests_per_minute=60
    )
    assert secret.startswith("petseg_") and len(secret) == 50
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    for wrong in (secret[:-1], secret + "x", secret.upper(), "", key.sha256, "\udcff"):
        assert ring.find(wrong) is None


def test_several_keys_each_open(path: Path) -> None:
    secrets = {new_key(path, name)[0]: name for name in ("a", "b", "c")}
    ring = KeyRing(path)
    for secret, name in secrets.items():
        found = ring.find(secret)
        assert found is not None and found.name == name
    assert [key.name for key in read_keys(path)] == ["a", "b", "c"]


def test_every_hash_is_compared_whatever_matches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [new_key(path, name)[0] for name in ("a", "b", "c")]
    compared: list[tuple[str, str]] = []

    def spy(ours: str, theirs: str) -> bool:
        compared.append((ours, theirs))
        return ours == theirs

    monkeypatch.setattr(hmac, "compare_digest", spy)
    hashes = [key.sha256 for key in read_keys(path)]
    ring = KeyRing(path)
    for presented in (*secrets, "wrong"):
        compared.clear()
        ring.find(presented)
        assert compared == [(each, hash_key(presented)) for each in hashes]


def test_an_expired_key_does_not_open(path: Path) -> None:
    secret, _ = new_key(path, "old", expires=TODAY)
    assert KeyRing(path).find(secret) is None


def test_a_changed_file_counts_without_a_restart(path: Path) -> None:
    old, _ = new_key(path, "old")
    ring = KeyRing(path, check_every_s=0)
    new, _ = new_key(path, "new")
    assert ring.find(new) is not None and ring.find(old) is not None
    path.write_text("[[key]]" + path.read_text().split("[[key]]")[2])
    assert ring.find(old) is None and ring.find(new) is not None


def test_the_file_is_not_looked_at_more_often_than_asked(path: Path) -> None:
    new_key(path, "old")
    ring = KeyRing(path, check_every_s=1000)
    assert ring.find(new_key(path, "new")[0]) is None


@pytest.mark.parametrize("broken", ["[[key", None, '[[key]]\nname = "x"\n'], ids=["toml", "gone", "fields"])
def test_a_broken_new_file_leaves_the_old_keys(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    secret, key = new_key(path, "lab")
    ring = KeyRing(path, check_every_s=0)
    good = path.read_text()
    path.unlink() if broken is None else path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        assert ring.find(secret) == key
        assert ring.find(secret) == key
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the key file changed and cannot be used, the keys of before stay"
    ]  # fmt: skip
    assert str(path.parent) not in caplog.text
    path.write_text(good + good.replace("lab", "second")[good.index("[[key]]") :])
    assert ring.find(secret) is not None and len(ring) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 1", "keys: Extra inputs are not permitted"),
        ('[[key]]\nname = "a"\nsha256 = "short"', "key.0.sha256: String should match pattern"),
        ('[[key]]\nname = "a b"\nsha256 = "{0}"', "key.0.name: String should match pattern"),
        ('[[key]]\nname = "a"\nsha256 = "{0}"\nrate = 1', "key.0.rate: Extra inputs are not permitted"),
        ('[[key]]\nname = "a"\nsha256 = "{0}"\nrequests_per_minute = -1', "key.0.requests_per_minute: Input should"),
        ('[[key]]\nname = "a"\nsha256 = "{0}"\n' * 2, "got two keys named a; give each its own name"),
        ("\0", "keys.toml is no TOML"),
    ],
)
def test_a_wrong_file_is_told_in_one_line_without_its_content(path: Path, text: str, said: str) -> None:
    path.write_text(text.format("0" * 64))
    with pytest.raises(KeyFileError) as caught:
        KeyRing(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "0" * 64 not in str(caught.value) and "short" not in str(caught.value)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"^keys.toml cannot be read \(No such file or directory\); make it with"):
        KeyRing(path)
    with pytest.raises(KeyFileError, match="cannot be written"):
        new_key(path.parent / "nowhere" / "keys.toml", "lab")


def test_names_are_plain_and_distinct(path: Path) -> None:
    new_key(path, "lab")
    before = path.read_text()
    with pytest.raises(KeyFileError, match=r"got the name lab, which keys\.toml has already"):
        new_key(path, "lab")
    with pytest.raises(KeyFileError, match="name: String should match pattern"):
        new_key(path, 'x"\nsha256 = "')
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["keys.toml"]


def test_the_files_mode_and_comments_stay(path: Path) -> None:
    path.write_text("# ours\n")
    path.chmod(0o640)
    _, key = new_key(path, "lab", expires=date(2040, 1, 2))
    assert path.read_text().startswith("# ours\n\n[[key]]\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert read_keys(path) == (key,)
