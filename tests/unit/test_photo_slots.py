"""Shared memory in slots: what one process writes another reads, and nothing is lent twice."""

import multiprocessing
from multiprocessing.connection import Connection

import numpy as np
import pytest

from service.image_processes import can_have_processes
from service.photo_slots import PhotoSlots, can_share_memory

pytestmark = pytest.mark.skipif(
    not (can_share_memory() and can_have_processes()), reason="this system shares no memory between processes"
)

SHAPE = (3, 8, 8)


def answer(slots: PhotoSlots, pipe: Connection) -> None:
    """Double what is in the slot that comes through the pipe."""
    slot = pipe.recv()
    view = slots.view(slot, SHAPE, np.uint8)
    view *= 2
    pipe.send("done")


def test_another_process_reads_and_writes_the_same_memory() -> None:
    slots = PhotoSlots.create(4, 500)
    context = multiprocessing.get_context("forkserver")
    own, other = context.Pipe()
    process = context.Process(target=answer, args=(slots, other))
    process.start()
    photo = np.arange(192, dtype=np.uint8).reshape(SHAPE) % 100
    slots.view(2, SHAPE, np.uint8)[:] = photo
    own.send(2)
    assert own.poll(60) and own.recv() == "done"
    process.join(60)
    assert (slots.view(2, SHAPE, np.uint8) == 2 * photo).all()
    assert not slots.view(1, SHAPE, np.uint8).any() and not slots.view(3, SHAPE, np.uint8).any()


def test_each_slot_is_lent_once_until_it_is_back() -> None:
    slots = PhotoSlots.create(2, 100)
    assert {slots.take(100), slots.take(100)} == {0, 1}
    assert slots.take(1) is None
    slots.give_back(1)
    assert slots.take(100) == 1


def test_what_is_too_large_gets_no_slot() -> None:
    slots = PhotoSlots.create(1, 100)
    assert slots.take(slots.size + 1) is None
    assert slots.take(slots.size) == 0
