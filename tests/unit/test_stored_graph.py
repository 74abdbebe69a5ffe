"""Graphs as tensors and back; anything else is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.stored_graph import StoredGraph, graph_tensors, read_graphs

GRAPH = StoredGraph(b"<net/>", b"\x00\x01\xff")


@given(st.binary(min_size=1), st.binary(min_size=1), st.booleans())
def test_there_and_back(xml: bytes, weights: bytes, is_prompted: bool) -> None:
    graph = StoredGraph(xml, weights)
    graphs = {"encode": graph, "decode": GRAPH} if is_prompted else {"encode": graph}
    assert read_graphs(graph_tensors(graphs)) == graphs


def test_the_digest_is_of_the_constants_alone() -> None:
    assert GRAPH.digest == StoredGraph(b"<other names/>", GRAPH.weights).digest != StoredGraph(GRAPH.xml, b"").digest


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    changed = {**graph_tensors({"encode": GRAPH}), **{name.replace("_", "."): value for name, value in changes.items()}}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (tensors(encode_weights=None), "wanted the xml and weights of encode or decode"),
        (tensors(extra=torch.zeros(1, dtype=torch.uint8)), "got .*extra"),
        ({}, r"got \[\], wanted"),
        (tensors(encode_xml=torch.zeros(3, dtype=torch.uint8)), "got a damaged structure"),
        (tensors(encode_xml=graph_tensors({"encode": GRAPH})["encode.xml"][:-4]), "cut off"),
        (tensors(encode_weights=torch.zeros(3)), "got torch.float32, wanted uint8"),
    ],
)
def test_what_is_not_a_graph_is_refused(broken: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_graphs(broken)


def test_a_structure_without_end_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.stored_graph._MAX_XML_BYTES", 1000)
    with pytest.raises(ValueError, match="above 1000 bytes"):
        read_graphs(graph_tensors({"encode": StoredGraph(bytes(5000), b"x")}))
