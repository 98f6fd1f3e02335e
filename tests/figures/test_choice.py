"""Which photos are shown follows from scores and classes alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm.stages.drawn import lowest, spread

SCORES = st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=25)


@given(SCORES, st.integers(1, 8), st.data())
def test_spread_takes_each_once_and_other_kinds_first(scores: list[float], count: int, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=len(scores), max_size=len(scores)))
    places = spread(scores, kinds, count)
    known = [place for place, score in enumerate(scores) if not np.isnan(score)]
    assert len(places) == len(set(places)) == min(count, len(known))
    assert set(places) <= set(known)
    assert [scores[place] for place in places] == sorted((scores[place] for place in places), reverse=True)
    assert len({kinds[place] for place in places}) == min(len(places), len({kinds[place] for place in known}))


@given(st.permutations(range(20)), st.sampled_from([1, 2, 4, 5, 10, 20]))
def test_spread_is_even_where_all_kinds_differ(order: list[int], count: int) -> None:
    scores = [value / 20 for value in order]
    ranks = [19 - order[place] for place in spread(scores, range(20), count)]
    part = 20 // count
    assert [rank // part for rank in ranks] == list(range(count))


@given(SCORES, st.integers(0, 8))
def test_lowest_are_below_all_others(scores: list[float], count: int) -> None:
    places = lowest(scores, count)
    rest = [score for place, score in enumerate(scores) if place not in places and not np.isnan(score)]
    taken = [scores[place] for place in places]
    assert taken == sorted(taken) and len(places) == min(count, len(taken) + len(rest))
    assert not taken or not rest or max(taken) <= min(rest)


@pytest.mark.parametrize("scores", [[], [float("nan")]])
def test_nothing_to_choose_from(scores: list[float]) -> None:
    assert spread(scores, range(len(scores)), 3) == lowest(scores, 3) == []
