"""Unknown and bad settings stop the start with one line that names the variable."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from models.folders import CHECKPOINT_FOLDER
from service.settings import Settings, SettingsError, read_settings


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PETSEG_ENGINE", "PETSEG_PRECISION"):
        monkeypatch.delenv(name)
    settings = read_settings()
    assert (settings.host, settings.port, settings.checkpoints) == ("127.0.0.1", 8000, CHECKPOINT_FOLDER)
    assert (settings.max_wait_s, settings.engine, settings.precision) == (0.0, "auto", "auto")


def test_the_environment_sets_and_the_command_line_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSEG_PORT", "9001")
    monkeypatch.setenv("PETSEG_CHECKPOINTS", "elsewhere")
    assert read_settings().port == 9001
    assert read_settings(port=9002, host=None).port == 9002
    assert read_settings().checkpoints == Path("elsewhere")


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSEG_PROT", "9001")
    with pytest.raises(SettingsError, match=r"^got the unknown setting PETSEG_PROT, wanted one of .*PETSEG_PORT.*$"):
        read_settings()


@pytest.mark.parametrize("name", ["PETSEG_BACKBONE_FOLDER", "PETSEG_SERVER", "PETSEG_API_KEY"])
def test_what_the_models_and_the_client_read_is_no_unknown_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "elsewhere")
    assert read_settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PETSEG_PORT", "many"),
        ("PETSEG_PORT", "70000"),
        ("PETSEG_MAX_BATCH_SIZE", "-1"),
        ("PETSEG_PRECISION", "int8"),
        ("PETSEG_ENGINE", "onnx"),
        ("PETSEG_DEADLINE_S", "0"),
        ("PETSEG_CACHE_BYTES", "-1"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value).startswith(f"{name}: got '{value}'; ")
    assert "\n" not in str(caught.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_lists_are_words_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSEG_CORS_ORIGINS", "https://a.example, https://b.example,")
    assert read_settings().cors_origins == ("https://a.example", "https://b.example")


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = read_settings()
    for name in ("PETSEG_ENGINE_CACHE", "PETSEG_KEYS", "PETSEG_PORT", "PETSEG_CORS_ORIGINS"):
        monkeypatch.setenv(name, "")
    assert read_settings() == wanted


def test_as_many_streams_and_threads_as_a_large_machine_has_cpus_may_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PETSEG_STREAMS", "PETSEG_IMAGE_THREADS"):
        monkeypatch.setenv(name, "384")
    settings = read_settings()
    assert (settings.streams, settings.image_threads) == (384, 384)
