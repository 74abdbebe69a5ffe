"""The cache forgets the least recently used first and never weighs more than its budget."""

import threading
from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from service.embedding_cache import EmbeddingCache

PUTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 120)), max_size=40)


def test_the_least_recently_used_goes_first() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    for name in "abc":
        cache.put(("tower", name), ord(name), 10)
    assert cache.get(("tower", "a")) == ord("a")
    cache.put(("tower", "d"), ord("d"), 10)
    assert cache.get(("tower", "b")) is None
    assert [cache.get(("tower", name)) for name in "acd"] == [ord(name) for name in "acd"]
    assert (cache.hits, cache.misses) == (4, 1)


def test_equal_images_under_other_encoders_are_other_entries() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    cache.put(("one", "image"), 1, 10)
    assert cache.get(("other", "image")) is None


def test_what_is_put_again_is_weighed_once() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    cache.put(("tower", "a"), 1, 20)
    cache.put(("tower", "a"), 2, 25)
    assert (cache.get(("tower", "a")), cache.bytes, len(cache)) == (2, 25, 1)


def test_a_value_heavier_than_the_budget_is_not_held_nor_is_its_forerunner() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    cache.put(("tower", "a"), 1, 20)
    cache.put(("tower", "a"), 2, 31)
    assert cache.get(("tower", "a")) is None
    assert cache.bytes == 0


def test_of_what_a_retired_encoder_made_a_part_is_held_unless_another_made_the_same() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(100)
    for encoder, name in (("old", "a"), ("new", "a"), ("old", "b"), ("new", "c"), ("old", "d")):
        cache.put((encoder, name), 7, 10)
    cache.retire("old", lambda value: (-value, 3))
    assert (len(cache), cache.bytes) == (4, 26)
    assert (cache.get(("new", "a")), cache.get(("old", "a")), cache.get(("old", "b"))) == (7, None, None)
    assert [cache.find_any(name) for name in "abcde"] == [7, -7, 7, -7, None]
    cache.put(("new", "b"), 8, 10)  # takes the place of what was left
    assert (len(cache), cache.bytes, cache.find_any("b")) == (4, 33, 8)
    for name in "wxyz":
        cache.put(("new", name), 9, 20)
    assert cache.find_any("d") is None  # as old as it was, and gone in its turn


def test_clear_forgets_everything() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    cache.put(("tower", "a"), 1, 20)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


@given(PUTS, st.integers(0, 200))
def test_never_over_budget(puts: list[tuple[str, int]], max_bytes: int) -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(max_bytes)
    weights: dict[str, int] = {}
    for name, weight in puts:
        cache.put(("tower", name), weight, weight)
        weights[name] = weight
        held = {name for name in weights if cache.get(("tower", name)) is not None}
        assert cache.bytes == sum(weights[name] for name in held) <= max_bytes
        assert all(cache.get(("tower", name)) == weights[name] for name in held)
        assert (name in held) == (weight <= max_bytes)


def test_threads_do_not_upset_the_books() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(50)

    def work(seed: int) -> None:
        for step in range(300):
            key = ("tower", str((seed + step) % 9))
            cache.put(key, step, step % 17)
            cache.get(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.bytes <= 50
    assert cache.bytes == sum(size for _, size in cache._entries.values())


def test_one_makes_the_value_and_the_others_wait_for_it() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    key = ("tower", "a")
    assert cache.get_or_claim(key) is None
    waiting = [cache.get_or_claim(key) for _ in range(2)]
    assert all(isinstance(each, Future) and not each.done() for each in waiting)
    cache.put(key, 7, 10)
    assert [each.result(0) for each in waiting if isinstance(each, Future)] == [7, 7]
    assert cache.get_or_claim(key) == 7


def test_waiters_are_told_when_the_maker_fails_and_one_of_them_may_try() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(30)
    key = ("tower", "a")
    assert cache.get_or_claim(key) is None
    waiting = cache.get_or_claim(key)
    assert isinstance(waiting, Future)
    cache.release(key)
    assert waiting.result(0) is None
    assert cache.get_or_claim(key) is None
    cache.release(key)
    cache.release(key)


def test_a_value_too_heavy_to_be_held_still_reaches_those_who_wait() -> None:
    cache: EmbeddingCache[int] = EmbeddingCache(5)
    key = ("tower", "a")
    assert cache.get_or_claim(key) is None
    waiting = cache.get_or_claim(key)
    assert isinstance(waiting, Future)
    cache.put(key, 7, 10)
    assert waiting.result(0) == 7
    assert cache.get(key) is None
