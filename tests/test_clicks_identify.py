"""Whether a log can tell position from quality: links between positions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.clicks.identify import cut_off, position_links, require_identified
from opengcl.data import DataSetError

Cell = tuple[int, int, int]


def arrays(cells: list[Cell]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pair, position, clicks = (np.array(column) for column in zip(*cells, strict=True))
    return pair, position, clicks


def test_a_link_is_as_strong_as_its_weaker_end() -> None:
    cells = [(0, 1, 30), (0, 3, 4), (1, 1, 1), (1, 3, 9), (2, 2, 50)]
    links = position_links(*arrays(cells))
    np.testing.assert_array_equal(links, [[0, 0, 13], [0, 0, 0], [13, 0, 0]])
    assert cut_off(links, 13).tolist() == [2]
    assert cut_off(links, 14).tolist() == [2, 3]


def test_a_chain_of_links_is_enough() -> None:
    cells = [(pair, position, 20) for pair in range(4) for position in (pair + 1, pair + 2)]
    require_identified(*arrays(cells), needed=20)
    with pytest.raises(DataSetError, match="positions 3-5 cannot be compared with position 1: fewer than 20 clicks"):
        require_identified(*arrays([one for one in cells if one[0] != 1]), needed=20)


def test_links_to_several_positions_add_up() -> None:
    """Position 4 hangs on 1, 2 and 3 by 8 clicks each."""
    cells = [(0, 1, 90), (0, 2, 90), (1, 2, 90), (1, 3, 90)]
    cells += [(9 + higher, at, 8) for higher in (1, 2, 3) for at in (higher, 4)]
    require_identified(*arrays(cells), needed=24)
    with pytest.raises(DataSetError, match="positions 4 cannot"):
        require_identified(*arrays(cells), needed=25)


def test_a_log_that_never_varies_says_so() -> None:
    cells = [(10 * position + pair, position, 500) for position in range(1, 6) for pair in range(9)]
    with pytest.raises(DataSetError, match=r"positions 2-5 cannot .* Each pair is shown at one position only\."):
        require_identified(*arrays(cells), needed=20)


def test_clicks_at_one_end_only_say_nothing() -> None:
    cells = [(pair, position, 50 * (position == 1)) for pair in range(9) for position in (1, 2)]
    with pytest.raises(DataSetError, match="positions 2 cannot"):
        require_identified(*arrays(cells), needed=1)


def test_one_position_needs_no_link() -> None:
    require_identified(*arrays([(0, 1, 3), (1, 1, 0)]), needed=20)


CELLS = st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 3))


@given(st.lists(CELLS, min_size=1, max_size=25, unique_by=lambda one: one[:2]))
def test_with_one_click_needed_the_cut_off_are_the_other_components(cells: list[Cell]) -> None:
    """Against a walk over the graph of pairs and positions."""
    reached, before = {1}, 0
    while before != len(reached):
        before = len(reached)
        pairs = {pair for pair, position, _ in cells if position in reached}
        reached |= {position for pair, position, _ in cells if pair in pairs}
    depth = max(position for _, position, _ in cells)
    expected = [position for position in range(1, depth + 1) if position not in reached]
    assert cut_off(position_links(*arrays(cells)), 1).tolist() == expected
