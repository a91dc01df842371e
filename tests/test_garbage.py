"""What stays for good is left out of collections, what is garbage is not kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from app.garbage import settle


class Node:
    """Part of a cycle, which only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_lives_is_left_out_of_later_collections(thawed: None) -> None:
    kept = Node()
    settle()
    assert gc.get_freeze_count() > 1000
    assert not any(each is kept for each in gc.get_objects())


def test_what_was_set_aside_and_is_garbage_goes_the_next_time(thawed: None) -> None:
    model = Node()
    settle()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is not None  # a collection does not look there
    settle()
    assert gone() is None
