"""Figures: percentiles, ratios by alternation, goals and the page, all against answers by hand."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import contestants
from benchmarks.goals import Comparison, Goal, at_least, at_most, judge_peers, judge_scenarios
from benchmarks.page import table, write_page
from benchmarks.peers import Turn, compare_masks
from benchmarks.raw import PIPELINE, RawResult, make_distinct
from benchmarks.results import read_results, write_results
from benchmarks.serve import Row
from benchmarks.statistics import describe_latency, without_client
from benchmarks.study import widen
from models.architectures.unet import UNet, UNetConfig
from models.letterbox import decode_image
from service.png import encode_indexed
from tests.fakes import encode, picture

ROW = Row("", "study", "png", "multipart", "100 KB", 8, 100.0, 10, 20, 40, 0, 12.0, 0.5, 500.0, 600.0, 4.0, 400)


def turn(name: str, precision: str, alternation: int, rate: float, **changes: Any) -> Turn:
    rows = tuple(replace(ROW, server=name, clients=clients, rate=rate, **changes) for clients in (1, 8, 32))
    return Turn(name, precision, alternation, 3.0, rows, 1.0)


@pytest.fixture
def comparison() -> Comparison:
    turns = []
    for alternation, (own, peer) in enumerate([(200.0, 100.0), (260.0, 100.0), (300.0, 200.0)]):
        turns += [
            turn("petseg-bf16", "bf16", alternation, own, p50_ms=5, p99_ms=20, peak_pss_mb=300),
            turn("litserve", "bf16", alternation, peer, p50_ms=20, p99_ms=50, peak_pss_mb=1000),
            turn("fastapi", "bf16", alternation, 50.0, p50_ms=10, p99_ms=90),
        ]
    raw = [RawResult("study", PIPELINE, "bf16", 2, size, rate, 8.0) for rate in (250, 280, 310) for size in (1, 4)]
    return Comparison(turns, raw, 3, 2)


def test_nearest_rank_percentiles() -> None:
    found = describe_latency([place / 1000 for place in range(1, 101)])
    assert (found.count, found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) == (100, 50, 90, 99, 100)
    assert math.isnan(describe_latency([]).max_ms)


def test_the_clients_cpu_time_is_given_back_to_the_server() -> None:
    assert without_client(90.0, client_cpu_s=0.8, seconds=4.0, cores=2) == pytest.approx(100.0)


def test_ratios_are_taken_in_each_alternation_against_its_best_peer(comparison: Comparison) -> None:
    def rate(row: Row) -> float:
        return row.rate

    assert comparison.ratio("petseg-bf16", ("litserve", "fastapi"), rate, 8) == pytest.approx(2.0)  # of 2, 2.6, 1.5
    assert comparison.ratio("petseg-bf16", ("fastapi",), rate, 8) == pytest.approx(5.2)
    assert math.isnan(comparison.ratio("petseg-int8", ("fastapi",), rate, 8))
    assert comparison.ceiling("bf16", ("fastapi",), 8) == pytest.approx(5.6)
    assert math.isnan(comparison.ceiling("int8", ("fastapi",), 8))
    assert math.isnan(comparison.ceiling("bf16", ("ray",), 8))
    assert comparison.raw_ratio("petseg-bf16", "bf16", 32, has_client=True) == pytest.approx(260 / 280)
    client_s = 0.5 * 400 / 1000
    wanted = 260 / 280 * 8 / (8 - client_s)
    assert comparison.raw_ratio("petseg-bf16", "bf16", 32, has_client=False) == pytest.approx(wanted)


def test_goals_are_judged_and_what_was_not_measured_is_said(comparison: Comparison) -> None:
    goals = {goal.name: goal for goal in judge_peers(comparison)}
    assert goals["petseg-bf16, 8 clients: rate by that of best bf16 peer (litserve)"] == Goal(
        "petseg-bf16, 8 clients: rate by that of best bf16 peer (litserve)",
        ">= 1.8",
        "2.00 (1.50 - 2.60)",
        True,
        ceiling="2.50",
    )  # the raw pipeline by litserve: of 2.5, 2.8 and 1.55
    assert goals["petseg-int8, 8 clients: rate by that of best bf16 peer (litserve)"].is_met is None
    assert goals["petseg-bf16, 1 client: p50 by the lowest of the peers (fastapi)"].got == "0.50"
    assert goals["petseg-bf16, 32 clients: p99 by the lowest of the peers (litserve)"].got == "0.40"
    assert goals["petseg-bf16: memory by the lowest of the batching peers (litserve)"].got == "0.30"
    assert at_least("", 2, 1.99).is_met is False
    assert at_most("", 2, 2.0).is_met is True
    assert {goal.is_met for goal in judge_scenarios({})} == {None}


def test_a_rate_with_wrong_masks_meets_no_goal(comparison: Comparison) -> None:
    turns = [replace(each, same_pixels=0.9) if each.contestant == "petseg-bf16" else each for each in comparison.turns]
    goals = {goal.name: goal for goal in judge_peers(replace(comparison, turns=turns))}
    goal = goals["petseg-bf16, 8 clients: rate by that of best bf16 peer (litserve)"]
    assert (goal.got, goal.is_met) == ("2.00 (1.50 - 2.60), but wrong masks", False)
    assert goals["petseg-bf16: pixels as in the reference masks"].is_met is False


def test_who_got_no_answer_is_nobodys_rival(comparison: Comparison) -> None:
    silent = turn("ray", "bf16", 0, 0.0, p50_ms=math.nan, p99_ms=math.nan, peak_pss_mb=1.0, answered=0)
    goals = {goal.name for goal in judge_peers(replace(comparison, turns=[*comparison.turns, silent]))}
    assert not any("(ray)" in name for name in goals)
    assert "petseg-bf16, 32 clients: p99 by the lowest of the peers (litserve)" in goals


def test_nothing_measured_is_no_goal_met() -> None:
    nothing = {"health": {"p99_ms": math.nan}, "overload": {"refused_p99_ms": math.nan, "is_alive": 0.0}}
    goals = {goal.name: goal.is_met for goal in judge_scenarios(nothing)}
    assert goals["/healthz under full load: p99 in ms"] is None
    assert goals["overload: p99 of a refusal in ms"] is None
    assert goals["overload: the process lives on"] is False


def test_a_cpu_without_bf16_compares_in_float32(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contestants, "has_native_bf16", lambda: False)
    everyone = [*contestants.our_variants(tmp_path / "study.safetensors"), *contestants.peers(tmp_path, tmp_path)]
    assert {each.precision for each in everyone} == {"fp32"}
    assert len({each.name for each in everyone}) == len(everyone) == 9
    turns = [
        replace(each, contestant=each.contestant.replace("bf16", "fp32"), precision="fp32") for each in comparison.turns
    ]
    goals = {goal.name: goal for goal in judge_peers(replace(comparison, turns=turns))}
    assert goals["petseg-fp32, 8 clients: rate by that of best fp32 peer (litserve)"].got == "2.00 (1.50 - 2.60)"
    assert not any("bf16" in name for name in goals)


def test_results_come_back_and_make_a_page(comparison: Comparison, tmp_path: Path) -> None:
    rows = [replace(ROW, body="raw", clients=clients) for clients in (1, 32)] + [replace(ROW, output="rle")]
    write_results(tmp_path, "raw", {"results": [RawResult("study", "forward", "bf16", 1, 8, 321.0, 3.0)]})
    write_results(tmp_path, "serve", {"rows": rows})
    write_results(tmp_path, "scenarios", {"scenarios": {"start": {"seconds": 7.5}}})
    found = {"turns": comparison.turns, "raw": comparison.raw, "alternations": 3, "cores": 2}
    found |= {"contestants": {"litserve": "tuned"}, "absent": ["ray is missing."]}
    write_results(tmp_path, "peers-study", found | {"model": "A UNet."})
    write_results(tmp_path, "peers-timm_unet", found | {"model": "Another.", "versions": {"litserve": "9.9"}})
    assert json.loads((tmp_path / "raw.json").read_text())["machine"]["Python"]
    results = read_results(tmp_path)
    assert [(each.model, each.comparison) for each in results.peers] == [
        ("study", comparison),
        ("timm_unet", comparison),
    ]
    assert results.serve == rows
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    write_page(page, results)
    text = page.read_text()
    assert "## What was tried" in text
    write_page(page, results, has_steps=False)
    assert "## What was tried" not in page.read_text()
    assert "| goal | wanted | got | most here | met |" in text
    assert "rate by that of best bf16 peer (litserve) | >= 1.8 | 2.00 (1.50 - 2.60) | 2.50 | yes |" in text
    assert "| `litserve`: tuned | 100 (100 - 200) | 100 (100 - 200) | 100 (100 - 200) | 20.0 |" in text
    assert "| seconds from start to ready, all shipped models, nothing kept from before | <= 15 | 7.50 | yes |" in text
    assert "ray is missing." in text
    assert "| litserve | 9.9 |" in text
    assert f"| raw | {datetime.now(UTC):%Y-%m-%d} |" in text
    assert "The same weights (Another) and the same task" in text
    assert "| `study` | forward alone | bf16 | 1 | 8 | 321 | 3.0 |" in text
    pictures = [
        tmp_path / "docs" / "benchmarks" / f"{name}.png" for name in ("peers-study", "peers-timm_unet", "models", "raw")
    ]
    assert all(f"benchmarks/{path.name}" in text and path.stat().st_size < 100_000 for path in pictures)


def test_a_table_aligns_figures() -> None:
    assert table(("name", "n"), [("a", "1"), ("b", "2.5")]).splitlines()[1] == "| --- | ---: |"


def test_masks_are_compared_pixel_by_pixel(tmp_path: Path) -> None:
    wanted = np.zeros((4, 5), np.uint8)
    got = wanted.copy()
    got[0, 0] = 1
    palette = [(0, 0, 0), (1, 1, 1)]
    (tmp_path / "0.bin").write_bytes(encode_indexed(got, palette))
    (tmp_path / "1.bin").write_bytes(encode_indexed(wanted[:2], palette))
    assert compare_masks(tmp_path, [wanted]) == pytest.approx(0.95)
    assert compare_masks(tmp_path, [wanted, wanted, wanted]) == pytest.approx(19 / 40)
    assert compare_masks(tmp_path / "none", [wanted]) == 0.0


def test_a_widened_unet_computes_the_same() -> None:
    torch.manual_seed(0)
    source = UNet(UNetConfig(image_size=16, widths=(4, 6, 8), vote=True)).eval()
    assert source.vote is not None
    torch.nn.init.normal_(source.vote.weight)
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    wide = widen(source, 3)
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(wide(images, {}), source(images, {}), atol=1e-5, rtol=1e-4)
    assert wide.config.widths == (12, 18, 24)  # type: ignore[attr-defined]


def test_photos_of_a_batch_differ_in_bytes_and_not_in_pixels() -> None:
    """Two that are the same would be encoded once, and the batch be smaller than it seems."""
    photos = [encode(picture(40, 30 + place), "JPEG") for place in range(2)]
    made = make_distinct(photos, 5)
    assert len(set(made)) == len(made) >= 5
    assert made[:2] == photos
    pixels = [np.asarray(decode_image(photo)[0]) for photo in made]
    for place, each in enumerate(pixels):
        assert np.array_equal(each, pixels[place % 2])
