from collections.abc import Iterator

import pytest

from assay.models import pooled_conv


@pytest.fixture
def without_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions as on a processor that multiplies no tiles of bfloat16."""
    made = pooled_conv._forward_loops, pooled_conv._loops
    monkeypatch.setattr(pooled_conv, "_multiplies_tiles", lambda: False)
    for loops in made:
        loops.cache_clear()
    yield
    for loops in made:
        loops.cache_clear()
