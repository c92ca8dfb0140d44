from __future__ import annotations

from collections.abc import Iterator

import pytest

from tdabench.grouping import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    with threads(1):
        yield
