"""A typed Python client of the service, blocking and async; needs httpx, never torch, so that scripts start at once.

    from service.client import Client
    with Client("http://127.0.0.1:8000") as client:
        mask = client.mask("timm_unet", Path("photo.jpg"))              # [H, W] uint8: 0 background, 1 cat, 2 dog
        answer = client.segment("clip", Path("photo.jpg"), text="a Siamese cat")

`AsyncClient` has the same methods, awaited. Both try again what may succeed later; what fails raises ClientError:
RefusedError with the service's own problem, or UnreachableError.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
import numpy as np
import numpy.typing as npt

from service.client_requests import (
    Asked,
    AskedOutlines,
    AskedSegments,
    Click,
    ClientError,
    Photo,
    RefusedError,
    UnreachableError,
    batch_request,
    read_line,
    read_mask,
    read_problem,
    segment_request,
)
from service.retries import Retries
from service.rle import decode_rle
from service.schemas import BatchAnswer, BatchProblem, ModelDetails, ModelList, ModelSummary, Output, SegmentAnswer

__all__ = [
    "AsyncClient",
    "BatchAnswer",
    "BatchProblem",
    "Click",
    "Client",
    "ClientError",
    "Output",
    "Photo",
    "RefusedError",
    "Retries",
    "SegmentAnswer",
    "UnreachableError",
    "decode_rle",
]

DEFAULT_URL = "http://127.0.0.1:8000"
_DEFAULT_RETRIES = Retries()


class _Connection:
    """What both clients know of the server."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retries: Retries) -> None:
        self.url = url.rstrip("/")
        self._retries = retries
        authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"User-Agent": "petseg-client", **authorization},
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        }

    def _wait_s(self, tries: int, outcome: httpx.Response | httpx.TransportError) -> float:
        """Seconds before the next try. Raises ClientError where none should be made."""
        wait_s = self._retries.wait_s(tries, outcome)
        if wait_s is not None:
            return wait_s
        if isinstance(outcome, httpx.Response):
            raise RefusedError(read_problem(outcome))
        reason = str(outcome) or type(outcome).__name__
        raise UnreachableError(f"{self.url}: got no answer in {tries} tries ({reason}); is the server running?")

    def _broke_off(self, error: httpx.TransportError) -> UnreachableError:
        return UnreachableError(f"{self.url}: the answer broke off ({error}); send the batch again")


class Client(_Connection):
    """A blocking client with one pool of connections, for any number of threads.

    api_key: where the server asks for one. timeout_s: of one try. transport: another way to the server, for tests.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries = _DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s, retries)
        self._http = httpx.Client(**self._options, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[ModelSummary]:
        """The loaded models."""
        return ModelList.model_validate_json(self._send(method="GET", url="/models").content).models

    def model(self, name: str) -> ModelDetails:
        """One model with its card."""
        return ModelDetails.model_validate_json(self._send(method="GET", url=f"/models/{name}").content)

    def segment(
        self, model: str, photo: Photo | None = None, output: Output = Output.RLE, **asked: Unpack[AskedSegments]
    ) -> SegmentAnswer:
        """The segments of one photo, as RLE or, with `Output.POLYGONS`, as polygons."""
        content = self._send(**segment_request(model, photo, output, **asked)).content
        return SegmentAnswer.model_validate_json(content)

    def draw(
        self, model: str, photo: Photo | None = None, output: Output = Output.PNG, **asked: Unpack[AskedOutlines]
    ) -> bytes:
        """One photo's answer as a file's content: mask, overlay, cutout, labels."""
        return self._send(**segment_request(model, photo, output, **asked)).content

    def mask(self, model: str, photo: Photo | None = None, **asked: Unpack[Asked]) -> npt.NDArray[np.uint8]:
        """One photo's mask [H, W] uint8; a value is an index into the model's `class_names`."""
        return read_mask(self.draw(model, photo, **asked))

    def segment_batch(
        self, model: str, photos: Iterable[Photo], *, text: str | None = None
    ) -> Iterator[BatchAnswer | BatchProblem]:
        """Many photos in one request: each answer as it is finished, a problem for each photo that cannot be read."""
        response = self._send(is_streamed=True, **batch_request(model, photos, text))
        try:
            for line in response.iter_lines():
                yield read_line(line)
        except httpx.TransportError as error:
            raise self._broke_off(error) from error
        finally:
            response.close()

    def _send(self, *, is_streamed: bool = False, **arguments: Any) -> httpx.Response:
        """A successful answer, read whole unless `is_streamed`. Raises ClientError."""
        request = self._http.build_request(**arguments)
        for tries in itertools.count(1):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.send(request, stream=True)
                if not (is_streamed and outcome.is_success):
                    outcome.read()
                if outcome.is_success:
                    return outcome
            except httpx.TransportError as error:
                outcome = error
            time.sleep(self._wait_s(tries, outcome))
        raise AssertionError("itertools.count has no end")


class AsyncClient(_Connection):
    """The same for asyncio."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries = _DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s, retries)
        self._http = httpx.AsyncClient(**self._options, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[ModelSummary]:
        """The loaded models."""
        response = await self._send(method="GET", url="/models")
        return ModelList.model_validate_json(response.content).models

    async def model(self, name: str) -> ModelDetails:
        """One model with its card."""
        response = await self._send(method="GET", url=f"/models/{name}")
        return ModelDetails.model_validate_json(response.content)

    async def segment(
        self, model: str, photo: Photo | None = None, output: Output = Output.RLE, **asked: Unpack[AskedSegments]
    ) -> SegmentAnswer:
        """The segments of one photo, as RLE or, with `Output.POLYGONS`, as polygons."""
        arguments = await asyncio.to_thread(segment_request, model, photo, output, **asked)
        return SegmentAnswer.model_validate_json((await self._send(**arguments)).content)

    async def draw(
        self, model: str, photo: Photo | None = None, output: Output = Output.PNG, **asked: Unpack[AskedOutlines]
    ) -> bytes:
        """One photo's answer as a file's content: mask, overlay, cutout, labels."""
        arguments = await asyncio.to_thread(segment_request, model, photo, output, **asked)
        return (await self._send(**arguments)).content

    async def mask(self, model: str, photo: Photo | None = None, **asked: Unpack[Asked]) -> npt.NDArray[np.uint8]:
        """One photo's mask [H, W] uint8; a value is an index into the model's `class_names`."""
        return read_mask(await self.draw(model, photo, **asked))

    async def segment_batch(
        self, model: str, photos: Iterable[Photo], *, text: str | None = None
    ) -> AsyncIterator[BatchAnswer | BatchProblem]:
        """Many photos in one request: each answer as it is finished, a problem for each photo that cannot be read."""
        response = await self._send(is_streamed=True, **await asyncio.to_thread(batch_request, model, photos, text))
        try:
            async for line in response.aiter_lines():
                yield read_line(line)
        except httpx.TransportError as error:
            raise self._broke_off(error) from error
        finally:
            await response.aclose()

    async def _send(self, *, is_streamed: bool = False, **arguments: Any) -> httpx.Response:
        """A successful answer, read whole unless `is_streamed`. Raises ClientError."""
        request = self._http.build_request(**arguments)
        for tries in itertools.count(1):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.send(request, stream=True)
                if not (is_streamed and outcome.is_success):
                    await outcome.aread()
                if outcome.is_success:
                    return outcome
            except httpx.TransportError as error:
                outcome = error
            await asyncio.sleep(self._wait_s(tries, outcome))
        raise AssertionError("itertools.count has no end")
