"""Graphs give what torch gives, for any number of rows and threads, or are refused; the folder only saves time."""

import errno
import logging
import os
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from models import openvino_graph
from models.engine import EngineError, Precision
from models.openvino_graph import Graph, GraphFolder, GraphOptions, Occupancy, convert, load_graph, store_graph
from models.stopping import Stop, StoppedError
from models.stored_graph import StoredGraph
from service.memory import free_memory

ONE = GraphOptions(Precision.FP32, streams=1, threads=1)


@pytest.fixture(params=[False, True], ids=["whole batches", "row by row"])
def options(request: pytest.FixtureRequest) -> GraphOptions:
    """Of one stream."""
    return replace(ONE, row_by_row=request.param)


class Halves(nn.Module):
    """Two outputs of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(images) + shifts[:, :, None, None], shifts * 2


class HandsOn(Halves):
    """An output that is an input, before those that are made of it."""

    def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return images, *super().forward(images, shifts)


class TakesTheBatchForAConstant(Halves):
    """What tracing a row count by hand does."""

    def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(images, shifts.reshape(int(shifts.shape[0]), -1))


class GivesOneRowNumber(Halves):
    """Whatever it is given."""

    def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        first, second = super().forward(images, shifts)
        return first[:2], second[:2] + torch.zeros(int(shifts.shape[0]), 4)[:2]


class DependsOnTheTrace(Halves):
    """Another function once the trace is over."""

    def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        factor = 1.01 if torch.jit.is_tracing() else 1.0  # type: ignore[attr-defined, no-untyped-call]
        return super().forward(images * factor, shifts)


class SortsUnheardOf(Halves):
    """No converter knows this one."""

    def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(torch.special.bessel_j0(images), shifts)


def example(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.rand(rows, 3, 8, 8, generator=generator), torch.rand(rows, 4, generator=generator)


@pytest.fixture(scope="module")
def converted() -> Any:
    return convert(Halves().eval(), example, "halves")


def test_any_number_of_rows(converted: Any, options: GraphOptions) -> None:
    graph, plain = Graph(converted, options), Halves()
    for rows in (1, 2, 5, 1):
        inputs = example(rows)
        for got, wanted in zip(graph(*inputs), plain(*inputs), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_inputs_of_any_layout(converted: Any, options: GraphOptions) -> None:
    images, shifts = example(2)
    strided = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(Graph(converted, options)(strided, shifts)[0], Halves()(images, shifts)[0])


def test_rows_that_lie_apart(options: GraphOptions) -> None:
    graph, plain = Graph(convert(HandsOn().eval(), example, "hands on"), options), HandsOn()
    for count in (1, 3):
        images, shifts = example(count)
        apart = [row.clone(memory_format=torch.preserve_format) for row in images.to(memory_format=torch.channels_last)]
        for got, wanted in zip(graph(apart, list(shifts)), plain(images, shifts), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_rows_by_themselves_are_read_where_they_lie(converted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, (images, shifts) = Graph(converted, replace(ONE, row_by_row=True)), example(3)
    apart = [row.clone() for row in images]
    monkeypatch.setattr(torch, "stack", lambda *_, **__: pytest.fail("rows were copied"))
    torch.testing.assert_close(graph(apart, shifts)[0], Halves()(images, shifts)[0])


def test_an_input_that_is_an_output_too(options: GraphOptions) -> None:
    graph, plain = Graph(convert(HandsOn().eval(), example, "hands on"), options), HandsOn()
    for rows in (1, 3, 1):
        inputs = example(rows)
        copies = [each.clone() for each in inputs]
        for got, wanted in zip(graph(*inputs), plain(*copies), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_several_threads_get_their_own_answers(converted: Any, options: GraphOptions) -> None:
    graph, plain = Graph(converted, replace(options, streams=2)), Halves()
    wrong: list[int] = []

    def ask(number: int) -> None:
        for turn in range(20):
            inputs = example(1 + (number + turn) % 3)
            if not torch.allclose(graph(*inputs)[0], plain(*inputs)[0], atol=1e-5):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pass_that_is_alone_gets_more_threads_and_gives_the_same(
    converted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    run = openvino_graph._Compiled.__call__

    def note(compiled: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        threads.append(compiled._compiled.get_property("INFERENCE_NUM_THREADS"))
        return run(compiled, *tensors)

    monkeypatch.setattr(openvino_graph._Compiled, "__call__", note)
    occupancy = Occupancy()
    graph = Graph(converted, GraphOptions(Precision.FP32, streams=1, threads=1, alone_threads=2), occupancy)
    inputs = example(2)
    alone = graph(*inputs)[0]
    with occupancy.enter() as is_alone:  # another graph's pass
        assert is_alone
        beside = graph(*inputs)[0]
    assert threads == [2, 1]
    torch.testing.assert_close(alone, beside)


def test_what_fails_is_no_longer_counted() -> None:
    occupancy = Occupancy()
    with suppress(ZeroDivisionError), occupancy.enter():
        _ = 1 / 0
    with occupancy.enter() as first, occupancy.enter() as second:
        assert (first, second) == (True, False)


def squares(rows: int) -> tuple[Tensor]:
    return (torch.rand(rows, 3, 64, 64, generator=torch.Generator().manual_seed(rows)),)


@pytest.fixture(scope="module")
def wide() -> Any:
    """1 MB of features for each row."""
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 1, 3)).eval(), squares, "wide")


def test_what_large_passes_needed_is_given_back_and_the_next_is_the_same(wide: Any) -> None:
    graph = Graph(wide, GraphOptions(Precision.FP32, streams=1, threads=1, alone_threads=2))
    wanted = graph(*squares(2))[0].clone()
    graph(*squares(200))
    free_memory()
    before = psutil.Process().memory_info().rss
    graph.release_memory()
    free_memory()
    assert psutil.Process().memory_info().rss < before - 150e6
    assert torch.equal(graph(*squares(2))[0], wanted)


def test_memory_of_a_pass_that_is_under_way_stays(wide: Any) -> None:
    graph = Graph(wide, ONE)
    wanted = graph(*squares(64))[0].clone()
    got: list[Tensor] = []
    thread = threading.Thread(target=lambda: got.append(graph(*squares(64))[0]))
    thread.start()
    while thread.is_alive():
        graph.release_memory()
    assert torch.equal(got[0], wanted)


@pytest.fixture(scope="module")
def slow() -> Any:
    """Half a second or so for each row."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(60)]
    return convert(nn.Sequential(*layers).eval(), large, "slow")


def large(rows: int) -> tuple[Tensor]:
    return (torch.rand(rows, 32, 192, 192, generator=torch.Generator().manual_seed(rows)),)


@pytest.mark.parametrize(("streams", "rows"), [(2, 1), (1, 4)], ids=["within a row", "between rows"])
def test_a_pass_is_stopped_and_the_next_ones_are_whole(slow: Any, streams: int, rows: int) -> None:
    graph = Graph(slow, GraphOptions(Precision.FP32, streams, threads=1, row_by_row=True))
    inputs = large(rows)
    started_at = time.perf_counter()
    wanted = graph(*inputs)[0]
    whole_s = time.perf_counter() - started_at
    stop, ended_at = Stop(), []

    def run() -> None:
        with stop.heeded(), pytest.raises(StoppedError):
            graph(*inputs)
        ended_at.append(time.perf_counter())

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(whole_s / 8)
    asked_at = time.perf_counter()
    stop.ask()
    thread.join()
    assert ended_at[0] - asked_at < whole_s / 2
    for given, whole in ((inputs, wanted), ((inputs[0][:1],), wanted[:1])):
        assert torch.equal(graph(*given)[0], whole)


def test_a_pass_of_any_number_of_rows_goes_on(slow: Any) -> None:
    """Once it was cancelled, such a graph would answer later ones in this one's shapes."""
    graph = Graph(slow, GraphOptions(Precision.FP32, streams=2, threads=1))
    wanted = graph(*large(1))[0]
    stop = Stop()
    with stop.heeded():
        clock = threading.Timer(0.02, stop.ask)
        clock.start()
        assert torch.equal(graph(*large(1))[0], wanted)
        clock.join()


def test_answers_outlive_the_next_question(converted: Any, options: GraphOptions) -> None:
    graph = Graph(converted, options)
    first = graph(*example(2))[0]
    copy = first.clone()
    graph(*example(2 + 1))
    graph(example(2)[0] + 1, example(2)[1])
    assert torch.equal(first, copy)


def test_others_are_warned_as_ever_while_a_network_is_traced() -> None:
    seen = []

    class Warns(Halves):
        def forward(self, images: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
            is_tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            if is_tracing and bool(images.sum() > 0):  # which tracing warns of
                with pytest.raises(UserWarning) as raised:  # as all warnings are in tests
                    warnings.warn("of somebody else", stacklevel=1)
                seen.append(raised)
            return super().forward(images, shifts)

    convert(Warns().eval(), example, "some net")
    assert seen


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (TakesTheBatchForAConstant(), "some net: got a network that OpenVINO does not convert"),
        (GivesOneRowNumber(), "does not convert .it gives 2 rows for 3"),
        (DependsOnTheTrace(), "some net: got an OpenVINO graph that differs from torch by .* wanted at most 0.001 of"),
        (SortsUnheardOf(), "some net: got a network that OpenVINO does not convert .*; use torch"),
    ],
)
def test_what_is_not_the_same_is_refused(module: nn.Module, said: str) -> None:
    root = logging.getLogger()
    before = (root.level, [*root.handlers], [*root.filters])
    with pytest.raises(EngineError, match=said):
        convert(module.eval(), example, "some net")
    assert (root.level, root.handlers, root.filters) == before


def test_a_kept_graph_is_not_converted_again(converted: Any, tmp_path: Path) -> None:
    folder, wanted = GraphFolder(tmp_path / "new" / "folder"), Graph(converted, ONE)(*example(3))
    folder.load("key", lambda: converted)
    again = folder.load("key", lambda: pytest.fail("converted again"))
    assert [path.name for path in folder.folder.iterdir()] == ["key"]  # type: ignore[union-attr]
    for got, expected in zip(Graph(again, ONE)(*example(3)), wanted, strict=True):
        assert torch.equal(got, expected)


def test_a_damaged_kept_graph_is_made_again(converted: Any, tmp_path: Path) -> None:
    folder = GraphFolder(tmp_path)
    folder.load("key", lambda: converted)
    (tmp_path / "key" / "graph.xml").write_text("<net")
    again = folder.load("key", lambda: converted)
    assert Graph(again, ONE)(*example(1))
    assert Graph(folder.load("key", lambda: pytest.fail("converted again")), ONE)(*example(1))


def test_a_folder_that_cannot_be_written_to_is_only_said(
    converted: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert GraphFolder(blocked / "inside").load("key", lambda: converted) is converted
    assert "graphs are not kept" in caplog.text
    assert GraphFolder(None).load("key", lambda: converted) is converted


def test_a_folder_that_may_only_be_read_is_read(
    converted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = GraphFolder(tmp_path)
    folder.load("key", lambda: converted)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert Graph(folder.load("key", lambda: pytest.fail("converted again")), ONE)(*example(1))


def test_what_was_long_unused_goes(converted: Any, tmp_path: Path) -> None:
    folder, old, new = GraphFolder(tmp_path), "0" * 32, "1" * 32
    folder.load(old, lambda: converted)
    os.utime(tmp_path / old, (0, 0))
    folder.load(new, lambda: converted)
    assert [path.name for path in tmp_path.iterdir()] == [new]


def test_only_graphs_are_forgotten(converted: Any, tmp_path: Path) -> None:
    photos, no_graph, other_name = tmp_path / "my_photos", tmp_path / ("2" * 32), tmp_path / "graphs"
    for foreign in (photos, no_graph, other_name):
        foreign.mkdir()
        (foreign / ("graph.xml" if foreign == other_name else "cat.jpg")).write_text("")
        os.utime(foreign, (0, 0))
    GraphFolder(tmp_path).load("1" * 32, lambda: converted)
    assert {path.name for path in tmp_path.iterdir()} == {photos.name, no_graph.name, other_name.name, "1" * 32}
    assert (photos / "cat.jpg").exists()


def test_keys_are_names_that_may_be_forgotten() -> None:
    assert openvino_graph._KEY.fullmatch(openvino_graph.graph_key("a", "encode"))


def test_keys_tell_weights_parts_and_code_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [openvino_graph.graph_key(*each) for each in (("a", "encode"), ("a", "decode"), ("b", "encode"))]
    monkeypatch.setattr(openvino_graph, "_code_digest", lambda: "other code")
    keys.append(openvino_graph.graph_key("a", "encode"))
    assert len(set(keys)) == 4


def test_a_stored_graph_is_the_same_function(converted: Any) -> None:
    stored = store_graph(converted)
    for got, wanted in zip(Graph(load_graph(stored), ONE)(*example(2)), Halves()(*example(2)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(EngineError, match="got a stored graph that OpenVINO does not read"):
        load_graph(StoredGraph(b"<net", b""))
