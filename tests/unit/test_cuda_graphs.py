"""Networks recorded as CUDA graphs: a GPU's tests, but for the choice of sizes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from models.cuda_graphs import GraphedFunction, HostLink, Recorder, graph_sizes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU, and torch sees none here")


@pytest.mark.parametrize("largest", [1, 2, 3, 8, 20, 64, 256])
def test_a_batch_is_padded_by_a_third_at_most_from_eight_on(largest: int) -> None:
    sizes = graph_sizes(largest)
    assert sizes[0] == 1
    assert sizes[-1] == largest
    for rows in range(8, largest + 1):
        assert 3 * min(size for size in sizes if size >= rows) <= 4 * rows


@pytest.fixture
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Doubling:
    """A function of rows that counts how often it was really called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rows: tuple[Tensor, Tensor], named: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        first, second = rows
        return 2 * first + second, named["more"] @ named["more"].mT


def inputs(count: int, seed: int) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    first, second, more = (torch.rand(count, 4, 4, generator=generator).cuda() for _ in range(3))
    return (first, second), {"more": more}


@needs_gpu
@pytest.mark.usefixtures("_inference")
def test_a_replay_gives_what_the_function_gives() -> None:
    function, recorder = Doubling(), Recorder()
    graphed = GraphedFunction(function, recorder)
    with recorder.on():
        for size in (1, 2, 8):
            graphed(*inputs(size, seed=size))
    assert graphed.sizes == [1, 2, 8]
    recorded = function.calls
    plain = Doubling()
    for count in (1, 2, 3, 5, 8):
        given = inputs(count, seed=100 + count)
        kept = graphed(*given)
        graphed(*inputs(count, seed=200 + count))  # must not write over what was given before
        for got, wanted in zip(kept, plain(*given), strict=True):
            torch.testing.assert_close(got, wanted)
    assert function.calls == recorded
    given = inputs(9, seed=9)
    torch.testing.assert_close(graphed(*given), plain(*given))
    assert function.calls == recorded + 1


@needs_gpu
def test_what_cannot_be_recorded_is_called(caplog: pytest.LogCaptureFixture) -> None:
    def look(rows: Tensor) -> Tensor:
        return rows * float(rows.sum())

    recorder = Recorder()
    graphed = GraphedFunction(look, recorder)
    ones = torch.ones(2, 2).cuda()
    with recorder.on():
        torch.testing.assert_close(graphed(ones), 4 * ones)
    torch.testing.assert_close(graphed(2 * ones), 16 * ones)
    assert graphed.sizes == []
    assert "no CUDA graph" in caplog.text


@needs_gpu
def test_threads_get_their_own_rows_while_another_records() -> None:
    recorder = Recorder()
    layer = torch.nn.Conv2d(3, 8, 3, padding=1).cuda().requires_grad_(False)
    graphed, link = GraphedFunction(layer, recorder), HostLink(torch.device("cuda"))

    def record() -> None:
        with torch.inference_mode(), recorder.on():
            for size in range(2, 12):
                graphed(torch.rand(size, 3, 16, 16).cuda())

    def ask(seed: int) -> float:
        worst = 0.0
        for turn in range(100):
            rows = torch.rand(1 + (seed + turn) % 7, 3, 16, 16, generator=torch.Generator().manual_seed(seed * turn))
            with torch.inference_mode():
                got = link.fetch(graphed(link.send(rows.pin_memory())))
                wanted = link.fetch(layer(rows.cuda()))
            worst = max(worst, float((got - wanted).abs().max()))
        return worst

    with torch.inference_mode(), recorder.on():
        graphed(torch.rand(1, 3, 16, 16).cuda())
    with ThreadPoolExecutor(5) as pool:
        recording = pool.submit(record)
        worst = list(pool.map(ask, range(1, 5)))
        recording.result()
    assert max(worst) < 1e-2
    assert graphed.sizes == list(range(1, 12))


@needs_gpu
def test_what_is_fetched_is_computed_by_then() -> None:
    link = HostLink(torch.device("cuda"))
    large = torch.rand(2048, 2048).cuda()
    product = large
    for _ in range(50):
        product = product @ large / 1024
    fetched = link.fetch(product)
    assert fetched.is_pinned()
    torch.testing.assert_close(fetched, product.cpu())
