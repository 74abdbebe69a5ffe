"""What each front may hold, and when a server takes fronts by itself."""

import math

import pytest
import torch

from service import app
from service.app import choose_fronts
from service.hub import FRONT_LIMITS, counts_of, front_settings, hub_settings, slot_bytes
from service.model_facts import ModelFacts
from service.settings import Settings, SettingsError
from tests.fakes import ColourModel, fake_checkpoint


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 CPUs beside a GPU, as far as choosing goes."""
    monkeypatch.setattr(app, "choose_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    monkeypatch.setattr(app, "available_cpus", lambda: 16)


@pytest.mark.parametrize("fronts", [1, 2, 14])
def test_fronts_hold_together_what_the_server_may_and_at_most_twice_that(fronts: int) -> None:
    whole = Settings(fronts=fronts)
    each = front_settings(whole, streams=2)
    for name in FRONT_LIMITS:
        limit = getattr(whole, name)
        assert min(limit, math.ceil(limit / fronts)) <= getattr(each, name) <= limit
        if name != "max_held_bytes":
            assert getattr(each, name) * fronts < 2 * limit + 2 * fronts
    assert each.max_held_bytes >= whole.max_batch_body_bytes  # or no front could take the largest batch
    assert (each.streams, each.image_threads, each.image_processes) == (2, 2, 0)


def test_threads_and_processes_for_photos_are_the_fronts() -> None:
    whole = Settings(fronts=2, image_processes=3, image_threads=8)
    assert (hub_settings(whole).image_threads, hub_settings(whole).image_processes) == (1, 0)
    each = front_settings(whole, streams=1)
    assert (each.image_threads, each.image_processes) == (3, 3)


@pytest.mark.usefixtures("gpu")
def test_beside_a_gpu_all_cpus_but_two_have_a_front(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_fronts(Settings()).fronts == 14
    monkeypatch.setattr(app, "available_cpus", lambda: 64)
    assert choose_fronts(Settings()).fronts == 16
    assert choose_fronts(Settings(fronts=3)).fronts == 3
    assert choose_fronts(Settings(image_processes=4)).fronts == 0  # whoever sets these means the threads' stead


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("cpus", "fronts"), [(1, 0), (2, 0), (3, 0), (4, 2), (5, 2), (6, 3), (8, 4), (64, 4)])
def test_where_cpus_run_the_networks_a_half_of_them_have_one(
    monkeypatch: pytest.MonkeyPatch, cpus: int, fronts: int
) -> None:
    monkeypatch.setattr(app, "available_cpus", lambda: cpus)
    assert choose_fronts(Settings(device="cpu")).fronts == fronts
    assert choose_fronts(Settings(device="cpu", fronts=1)).fronts == 1
    assert choose_fronts(Settings(device="cpu", image_processes=0)).fronts == 0
    assert choose_fronts(Settings(device="cpu", streams=2)).fronts == 0
    assert choose_fronts(Settings(device="cpu", streams=3, stream_threads=2)).fronts == min(3, fronts)


@pytest.mark.usefixtures("gpu")
def test_there_are_none_where_nothing_is_to_spare_or_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "available_cpus", lambda: 1)
    assert choose_fronts(Settings()).fronts == 0
    monkeypatch.setattr(app, "available_cpus", lambda: 2)
    assert choose_fronts(Settings()).fronts == 0
    monkeypatch.setattr(app, "available_cpus", lambda: 16)
    monkeypatch.setattr(app, "can_have_fronts", lambda: False)
    assert choose_fronts(Settings()).fronts == 0
    with pytest.raises(SettingsError, match="PETSEG_FRONTS: got 2, but this system"):
        choose_fronts(Settings(fronts=2))


def test_a_slot_holds_the_scores_of_every_model() -> None:
    checkpoint = fake_checkpoint(ColourModel, "colour")
    config = checkpoint.model.config
    facts = ModelFacts(
        name="colour",
        card=checkpoint.card,
        checkpoint="",
        prompt_kind=checkpoint.model.prompt_kind,
        prompt_required=False,
        class_names=config.class_names,
        image_size=config.image_size,
        engine="fake",
        keeps_images=False,
    )
    assert slot_bytes([facts]) == 4 * len(config.class_names) * config.image_size**2
    assert slot_bytes([]) == 0


def test_requests_of_a_dead_front_are_in_flight_no_more() -> None:
    series = {("petseg_requests_in_flight", ()): 3.0, ("petseg_photos_total", (("model", "cats"),)): 7.0}
    assert counts_of(series) == {("petseg_photos_total", (("model", "cats"),)): 7.0}
