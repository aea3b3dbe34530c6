"""What steps cost is learned from steps: from few at first, and from every one since."""

import random

import pytest

from edgellm.engine.speculate import CostModel, LookupProposer
from tests.edgellm.speculate.simulator import replay, teach, times

ROWS = range(1, 17)


def known(per_row: float = 0.1) -> CostModel:
    costs = CostModel()
    teach(costs, times(per_row))
    return costs


def test_many_steps_of_all_sizes_are_known_exactly() -> None:
    true = times(0.1)
    assert known().seconds(0) == pytest.approx([true(rows, 0) for rows in ROWS], rel=0.02)


@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_is_known_from_prompts_alone(rows: int) -> None:
    costs = CostModel()
    costs.observe(300, 0, 0.1, is_prompt=True)
    assert not costs.is_known
    costs.observe(rows, 300, 0.002)
    assert costs.is_known and costs.seconds(0)[0] <= 0.002


def test_a_prompt_and_one_token_tell_about_what_drafts_cost() -> None:
    """SmolLM2-135M on 2 cores: measured milliseconds by rows, of which a prompt of 256 and a token are seen."""
    measured = {1: 2.28, 2: 2.57, 4: 3.23, 8: 4.94, 12: 7.07, 16: 8.72}
    costs = CostModel()
    costs.observe(256, 0, 0.1146, is_prompt=True)
    costs.observe(1, 256, 0.00228)
    found = costs.seconds(0)
    assert [1000 * found[rows - 1] for rows in measured] == pytest.approx(list(measured.values()), rel=0.1)


def test_without_a_prompt_a_further_row_is_thought_to_cost_a_part_of_one() -> None:
    costs = CostModel()
    costs.observe(1, 0, 1.0)
    found = costs.seconds(0)
    assert found[0] == 1.0 and found == sorted(found)
    assert 1.1 < found[1] < 1.5 and 3 < found[15] < 7


def test_a_slow_first_prompt_does_not_keep_drafts_from_being_tried() -> None:
    """Its weights came from the disk, say: a row is never thought to cost more than a step of its own."""
    costs = CostModel()
    costs.observe(40, 0, 5.0, is_prompt=True)
    costs.observe(1, 40, 0.002)
    assert costs.seconds(40)[1] == pytest.approx(0.002 * 1.65)
    assert replay([1], [1] * 500, proposers=[LookupProposer()], slow_prompt=True).speedup > 2


def test_a_slower_machine_makes_all_rows_slower_in_time() -> None:
    costs = known()
    before = costs.seconds(50)
    for _ in range(100):
        costs.observe(1, 50, 1.5 * before[0])
    assert costs.seconds(50)[0] == pytest.approx(1.5 * before[0], rel=1e-3)


def test_rows_that_cost_more_than_expected_are_learned_without_touching_the_single_row() -> None:
    costs = known()
    before = costs.seconds(0)
    for _ in range(100):
        costs.observe(4, 0, 2 * before[3])
    after = costs.seconds(0)
    assert after[0] == before[0]
    assert after[3] == pytest.approx(2 * before[3], rel=0.02)
    assert all(later > earlier for later, earlier in zip(after[1:], before[1:], strict=True)), "half of it for all"


def test_depth_makes_steps_longer_as_told() -> None:
    costs = CostModel(depth_cost=0.001)
    costs.observe(1, 1000, 2.0)
    assert costs.seconds(0)[0] == pytest.approx(1.0) and costs.seconds(3000)[0] == pytest.approx(4.0)
    for depth in range(0, 9000, 10):
        costs.observe(1, depth, 1.0 + depth / 1000)
    assert costs.seconds(0)[0] == pytest.approx(1.0)


def test_noise_is_believed_little_and_another_program_hardly() -> None:
    costs, draw = known(), random.Random(0)
    plain = costs.seconds(0)[0]
    for _ in range(200):
        costs.observe(1, 0, plain * draw.gauss(1, 0.05))
    assert costs.seconds(0)[0] == pytest.approx(plain, rel=0.05)
    before = costs.seconds(0)[0]
    costs.observe(1, 0, 1000 * plain)
    assert costs.seconds(0)[0] == pytest.approx(2**0.1 * before)


def test_a_step_that_costs_less_than_one_row_is_noise() -> None:
    costs = known()
    for _ in range(100):
        costs.observe(4, 0, 0.5 * costs.seconds(0)[0])
    found = costs.seconds(0)
    assert found[0] == pytest.approx(0.002) and all(seconds > found[0] for seconds in found[1:])


def test_long_drafts_teach_nothing() -> None:
    costs = known()
    before = costs.seconds(0)
    costs.observe(18, 0, 9.0)
    assert costs.seconds(0) == before
