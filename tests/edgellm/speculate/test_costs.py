"""Times of steps: as measured, and as steps correct them."""

import random

import pytest

from edgellm.engine.speculate import CostModel
from tests.edgellm.speculate.simulator import times


def test_times_are_those_measured_and_linear_between() -> None:
    asked = []

    def measure(rows: int, depth: int) -> float:
        asked.append((rows, depth))
        return rows + rows * rows * depth / 100

    costs = CostModel(measure, depth=100)
    assert asked == [], "nothing is measured before it is needed"
    costs.seconds(0)
    assert sorted(asked) == [(rows, depth) for rows in (1, 2, 4, 8, 16) for depth in (0, 100)]
    assert costs.seconds(0) == pytest.approx(list(range(1, 17)))
    assert [costs.seconds(100)[rows - 1] for rows in (1, 2, 4, 8, 16)] == pytest.approx([2, 6, 20, 72, 272])
    assert costs.seconds(100)[12 - 1] == pytest.approx((72 + 272) / 2)
    assert costs.seconds(50)[4 - 1] == pytest.approx((4 + 20) / 2)
    assert costs.seconds(300)[4 - 1] == pytest.approx(4 + 3 * 16)


def test_a_slower_machine_is_seen_in_single_rows_and_applies_to_all() -> None:
    costs = CostModel(times(0.1), depth=100)
    before = costs.seconds(50)
    for _ in range(100):
        costs.observe(1, 50, 1.5 * before[0])
    assert costs.seconds(50) == pytest.approx([1.5 * seconds for seconds in before], rel=1e-3)


def test_rows_that_cost_more_than_measured_are_learned_without_touching_the_single_row() -> None:
    costs = CostModel(times(0.1), depth=100)
    before = costs.seconds(50)
    for _ in range(200):
        costs.observe(4, 50, 2 * before[3])
    assert costs.seconds(50)[0] == before[0]
    assert costs.seconds(50)[3] == pytest.approx(2 * before[3], rel=1e-3)
    assert 1.2 * before[7] < costs.seconds(50)[7] < 1.6 * before[7]  # half as surprising, on the logarithm


def test_noise_is_averaged_and_an_interrupted_step_counts_as_twice_the_time() -> None:
    costs, draw = CostModel(times(0.1), depth=100), random.Random(0)
    plain = costs.seconds(0)[0]
    for _ in range(500):
        costs.observe(1, 0, plain * draw.gauss(1, 0.05))
    assert costs.seconds(0)[0] == pytest.approx(plain, rel=0.05)
    before = costs.seconds(0)[0]
    costs.observe(1, 0, 1000 * plain)
    assert costs.seconds(0)[0] == pytest.approx(2**0.1 * before)


def test_steps_of_more_rows_than_a_draft_teach_nothing() -> None:
    costs = CostModel(times(0.1), depth=100)
    before = costs.seconds(0)
    costs.observe(17, 0, 1.0)
    assert costs.seconds(0) == before


def test_long_drafts_that_cost_less_than_measured_never_make_short_ones_free() -> None:
    costs = CostModel(times(0.1), depth=100)
    before = costs.seconds(0)
    for _ in range(200):
        costs.observe(16, 0, 0.6 * before[15])
    after = costs.seconds(0)
    assert after[15] == pytest.approx(0.6 * before[15], rel=1e-3)
    assert after[:15] == sorted(after[:15])
    assert after[1] > 1.02 * after[0]


def test_a_measurement_in_which_more_rows_took_less_is_not_believed() -> None:
    costs = CostModel(lambda rows, depth: 1.0 if rows == 1 else 0.9, depth=100)
    assert costs.seconds(0) == pytest.approx([1 + 0.01 * further for further in range(16)])


def test_the_first_steps_say_more_than_later_ones() -> None:
    costs = CostModel(times(0.1), depth=100)
    plain = costs.seconds(0)
    costs.observe(1, 0, 1.44 * plain[0])
    assert costs.seconds(0)[0] == pytest.approx(1.2 * plain[0])
    one, more = costs.seconds(0)[0], costs.seconds(0)[3] - costs.seconds(0)[0]
    costs.observe(4, 0, one + 1.44 * more)  # half of the surprise is all rows', half their own: sqrt(1.2) twice
    assert costs.seconds(0)[3] - one == pytest.approx(1.2 * more)
