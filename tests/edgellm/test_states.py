"""What sequences remember, in every mixture of states: random steps, rewinds and shared beginnings beside a simple
model of what must hold, with the books checked after each.
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from operator import add, ge, gt, sub
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.errors import KVMemoryError
from edgellm.families.network import KeysValues
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.checkpoints import Checkpoints
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.kv import ZERO_SLOT, KVCache
from edgellm.memory.layout import BlockLayout, LayerKV, LayerSlot, SlotLayout, StateLayout
from edgellm.memory.pool import Pool
from edgellm.memory.prefix import PrefixCache
from edgellm.memory.sequence import Sequence
from edgellm.memory.tree import common_prefix
from edgellm.memory.window import NOWHERE, WindowBlocks
from tests.edgellm.prefix_requests import MODEL

FORMAT = kv_formats()["bf16"]
LONGEST = 200  # tokens of a text


def layout(*, keeps_all: bool = True, windows: tuple[int, ...] = (), is_recurrent: bool = False) -> StateLayout:
    """One layer of every kind."""

    def group(layer: int, window: int | None) -> BlockLayout:
        head_bytes = FORMAT.head_bytes(32)
        return BlockLayout({layer: LayerKV(KeysValues(1, 32, window), 0, head_bytes)}, head_bytes, window)

    everything = group(0, None) if keeps_all else BlockLayout({}, 0)
    groups = (everything, *(group(1 + number, window) for number, window in enumerate(windows)))
    slots = SlotLayout({9: LayerSlot((16,), 0)}, 64) if is_recurrent else None
    return StateLayout(FORMAT, groups, slots)


LAYOUTS = {
    "all": layout(),
    "window": layout(windows=(40,)),
    "two windows": layout(windows=(1, 70)),
    "window alone": layout(keeps_all=False, windows=(40,)),
    "recurrent": layout(is_recurrent=True),
    "recurrent alone": layout(keeps_all=False, is_recurrent=True),
    "everything": layout(windows=(40, 64), is_recurrent=True),
}


def marks_of(tokens: list[int]) -> list[int]:
    """What is left behind by every token, and depends on all up to it; the first stands for no text."""
    return list(accumulate(tokens, lambda mark, token: hash((mark, token)), initial=0))


class Walk:
    """Texts in a cache, each with what it would leave behind if nobody else were there."""

    def __init__(self, layout: StateLayout, sizes: dict[str, int], seed: int, store: BlockStore | None = None) -> None:
        places = [sizes["places"]] * len(layout.windows)
        self.cache = KVCache(layout, sizes["blocks"], num_places=places, num_slots=sizes["slots"])
        self.prefix = PrefixCache(self.cache, model=MODEL, store=store)
        self.store, self.random = store, random.Random(seed)
        self.has_plenty = sizes["blocks"] > 1000 and store is None
        self.running: list[tuple[Sequence, list[int]]] = []
        self.known: list[list[int]] = [[]]  # texts whose blocks are kept
        self.states: list[list[int]] = [[]]  # texts whose states are kept
        self.counts: Counter[str] = Counter()

    def run(self, count: int) -> None:
        for _ in range(count):
            options = [self.begin] if len(self.running) < 4 else []
            options += [*[self.step] * 5, self.rewind, self.accept, self.end] if self.running else []
            act = self.random.choice(options)
            act()
            self.counts[act.__name__] += 1
            self.check()
        while self.running:
            self.end()
        self.prefix.check_integrity()
        self.cache.check_nothing_is_held()

    def begin(self) -> None:
        start = self.random.choice(self.known if self.has_plenty or self.store is not None else self.known[-4:])
        kept = self.random.choice([len(start), self.random.randint(0, len(start))])
        tokens = [*start[:kept], *self.random.choices(range(3), k=self.random.randint(1, 100))][:LONGEST]
        if self.store is not None:
            assert self.store.flush(60)
        sequence, report = self.prefix.match_prefix(tokens)
        assert sequence.length == report.num_cached_tokens < len(tokens)
        self.counts["cached"] += sequence.length > 0
        self.counts["from disk"] += report.from_disk > 0
        self.counts["no state"] += report.reason == "no state"
        if self.has_plenty:
            assert sequence.length == self.expected(tokens)
        self.running.append((sequence, tokens))

    def expected(self, tokens: list[int]) -> int:
        """Where a text resumes if nothing was ever evicted."""
        most = min(len(tokens) - 1, max(common_prefix(text, tokens) for text in self.known))
        if not self.cache.is_recurrent:
            return most
        return max(len(text) for text in self.states if len(text) <= most and text == tokens[: len(text)])

    def step(self) -> None:
        number = self.random.randrange(len(self.running))
        sequence, tokens = self.running[number]
        end = self.random.randint(sequence.length, len(tokens))
        goes_on = self.random.random() < 0.2 and sequence._slot_before is not None
        if end == sequence.length:
            return
        free, demand = self.cache.free, sequence.demand(end)
        try:
            sequence.reserve(end, goes_on=goes_on)
            assert goes_on or all(map(ge, self.cache.free, map(sub, free, demand))), "no more is taken than demanded"
        except KVMemoryError:
            assert goes_on or any(map(gt, demand, free)), "what is demanded and there can be had"
            self.counts["full"] += 1
            self.end(number)
            return
        assert self.sees(sequence, tokens)
        self.write(sequence, tokens, end)
        sequence.advance(end - sequence.length)
        if self.random.random() < 0.6:
            self.tell(sequence, tokens[:end])

    def tell(self, sequence: Sequence, tokens: list[int]) -> None:
        keeps_state = self.random.random() < 0.5
        if self.random.random() < 0.5:
            self.prefix.cache_blocks(sequence, tokens)
            self.known.append(tokens[: len(tokens) // KV_BLOCK * KV_BLOCK])
            keeps_state = False
        else:
            self.prefix.cache_tokens(sequence, tokens, keeps_state=keeps_state)
            self.known.append(tokens)
        if keeps_state or len(tokens) % self.cache.layout.state_interval == 0:
            self.states.append(tokens)

    def rewind(self) -> None:
        sequence, tokens = self.random.choice(self.running)
        target = self.random.randint(max(0, sequence.length - 50), sequence.length)
        self.stand(sequence, tokens, target, sequence.rewind(target))

    def accept(self) -> None:
        """A part of the last step, if there was one since its room was reserved."""
        sequence, tokens = self.random.choice(self.running)
        begin = sequence._step_begin
        if begin < sequence.length and (not self.cache.is_recurrent or sequence._slot_before is not None):
            target = self.random.randint(begin, sequence.length)
            stands = sequence.accept(target - begin)
            assert stands >= begin, "nothing before the step is lost"
            self.stand(sequence, tokens, target, stands)

    def stand(self, sequence: Sequence, tokens: list[int], target: int, stands: int) -> None:
        assert stands == sequence.length <= target
        assert stands == target or self.cache.windows or self.cache.is_recurrent
        tokens[stands:] = self.random.choices(range(3), k=self.random.randint(1, 80))
        del tokens[LONGEST:]

    def end(self, number: int | None = None) -> None:
        sequence, tokens = self.running.pop(self.random.randrange(len(self.running)) if number is None else number)
        tokens = tokens[: sequence.length]
        free = tuple(map(add, self.cache.free, sequence.held_alone()))
        self.prefix.free(sequence, tokens)
        assert self.cache.free == free, "what one holds alone can be had when it ends"
        self.known.append(tokens)
        self.states.append(tokens)

    def check(self) -> None:
        """The books balance, everybody sees what he wrote, and holds what he holds."""
        self.prefix.check_integrity()
        blocks, slots = Counter[int](), Counter[int]({ZERO_SLOT: 1} if self.cache.is_recurrent else {})
        places = [Counter[int]() for _ in self.cache.windows]
        for sequence, tokens in self.running:
            assert self.sees(sequence, tokens)
            blocks.update(sequence.blocks)
            slots.update(slot for slot in (sequence.slot, sequence.next_slot, sequence._slot_before or 0) if slot)
            for window, first, count in zip(self.cache.windows, sequence._seen, places, strict=True):
                assert first <= window.first_seen(sequence.length)
                count.update(window.place_of[block] for block in sequence.blocks[first:])
        pools = [self.cache, self.cache.slots, *(window.pool for window in self.cache.windows)]
        for pool, counts in zip(pools, [blocks, slots, *places], strict=True):
            assert {place: pool.ref_count(place) for place in range(pool.size) if pool.ref_count(place)} == dict(counts)

    def sees(self, sequence: Sequence, tokens: list[int]) -> bool:
        """Whether all that the next token sees is what its text leaves behind."""
        marks, length = marks_of(tokens[: sequence.length]), sequence.length
        if self.cache.is_recurrent and self.cache.store.read_slot(sequence.slot).view(np.int64)[0] != marks[-1]:
            return False
        for group, found in enumerate(self.cache.layout.groups):
            first = max(0, length - found.window + 1) if found.window else 0
            for position in range(first, length) if found.layers else ():
                if self.at(sequence, group, position)[0] != marks[position + 1]:
                    return False
        return True

    def write(self, sequence: Sequence, tokens: list[int], end: int) -> None:
        marks = marks_of(tokens[:end])
        for group, found in enumerate(self.cache.layout.groups):
            for position in range(sequence.length, end) if found.layers else ():
                self.at(sequence, group, position)[0] = marks[position + 1]
        if self.cache.is_recurrent:
            assert sequence.next_slot != sequence.slot
            self.cache.store.read_slot(sequence.next_slot).view(np.int64)[0] = marks[-1]

    def at(self, sequence: Sequence, group: int, position: int) -> NDArray[np.int64]:
        block = self.cache.block_view(sequence.blocks[position // KV_BLOCK], group)
        return block.view(np.int64)[position % KV_BLOCK :]


PLENTY = {"blocks": 2000, "places": 2000, "slots": 2000}
LITTLE = {"blocks": 9, "places": 6, "slots": 6}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("sizes", [PLENTY, LITTLE], ids=["plenty", "little"])
def test_whatever_happens_everybody_sees_what_was_computed(kind: str, sizes: dict[str, int], seed: int) -> None:
    walk = Walk(LAYOUTS[kind], sizes, seed)
    walk.run(250)
    assert walk.counts["cached"] > 3 and walk.counts["accept"] > 10 and walk.counts["rewind"] > 10
    assert sizes is PLENTY or walk.counts["full"] > 2


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BlockStore]:
    found = LAYOUTS[request.param]
    state_bytes = found.slots.nbytes if found.slots else None
    with closing(
        BlockStore(
            tmp_path, model=MODEL, block_bytes=found.block_bytes, budget_bytes=100 << 20, state_bytes=state_bytes
        )
    ) as store:
        yield store


@pytest.mark.parametrize(
    "kind, store", [(kind, kind) for kind in ("window", "recurrent", "recurrent alone", "everything")],
    indirect=["store"],
)  # fmt: skip
def test_what_comes_from_the_disk_is_what_was_computed(kind: str, store: BlockStore) -> None:
    walk = Walk(LAYOUTS[kind], LITTLE, 0, store)
    walk.run(250)
    assert walk.counts["from disk"] > 3


def test_a_step_that_goes_on_can_be_taken_back_with_the_one_before() -> None:
    walk = Walk(LAYOUTS["everything"], PLENTY, 0)
    tokens = walk.random.choices(range(3), k=120)
    sequence, _ = walk.prefix.match_prefix(tokens)
    for end, goes_on in ((90, False), (91, False), (92, True), (99, True)):
        sequence.reserve(end, goes_on=goes_on)
        walk.write(sequence, tokens, end)
        sequence.advance(end - sequence.length)
        walk.prefix.check_integrity()
    assert sequence.rewind(95) == 90 and walk.sees(sequence, tokens)
    assert walk.cache.slots.size - walk.cache.slots.num_free == 2, "the state there, and the one before all texts"
    sequence.rewind(0)
    walk.cache.check_nothing_is_held()


def test_a_sequence_that_goes_on_gives_back_what_its_window_has_passed() -> None:
    cache = KVCache(LAYOUTS["window"], 100)
    sequence = Sequence(cache)
    pool, held = cache.windows[0].pool, []
    for length in range(1, 400):
        sequence.reserve(length)
        held.append(pool.size - pool.num_free)
        sequence.advance(1)
    assert max(held) == 3  # 40 tokens lie in so many blocks at most
    sequence.rewind(0)
    cache.check_nothing_is_held()


def test_nobody_resumes_within_a_block_that_others_need_where_there_is_no_memory_for_a_copy() -> None:
    """Or he could never go on."""
    walk = Walk(LAYOUTS["recurrent"], {"blocks": 1, "places": 0, "slots": 4}, 0)
    tokens = [1] * 15
    sequence, _ = walk.prefix.match_prefix(tokens)
    for end in (10, 15):
        sequence.reserve(end)
        walk.write(sequence, tokens, end)
        sequence.advance(end - sequence.length)
        walk.prefix.cache_tokens(sequence, tokens[:end], keeps_state=end == 10)
    sequence.rewind(0)
    other, report = walk.prefix.match_prefix([*tokens, 2, 2])
    assert (report.num_cached_tokens, report.reason) == (0, "no state")
    other.reserve(17)
    other.rewind(0)
    walk.cache.check_nothing_is_held()


@pytest.mark.parametrize("seed", range(3))
def test_places_of_a_window_are_those_of_blocks(seed: int) -> None:
    rng, window = random.Random(seed), WindowBlocks(40, num_blocks=30, num_places=10)
    holds: Counter[int] = Counter()  # by block
    for _ in range(500):
        there = [block for block in range(30) if window.place_of[block] != NOWHERE]
        held = list(holds.elements())
        nowhere = [block for block in range(30) if block not in there]
        act = rng.choice(["attach", "attach", "hold", "release", "release", "move", "detach"])
        if act == "attach" and window.pool.num_free:
            block = rng.choice(nowhere)
            window.attach(block)
            holds[block] += 1
        elif act == "hold" and there:
            block = rng.choice(there)
            window.hold([block])
            holds[block] += 1
        elif act == "release" and held:
            block = rng.choice(held)
            window.release([block])
            holds -= Counter([block])
        elif act == "move" and there and nowhere:
            source, target = rng.choice(there), rng.choice(nowhere)
            window.move(source, target)
            holds[target] = holds.pop(source, 0)
        elif act == "detach" and (free := [block for block in range(30) if not holds[block]]):
            window.detach(rng.choice(free))
        window.check_integrity()
        assert window.has_all(holds.elements()), "no place is lost that somebody holds"
        assert all(window.pool.ref_count(window.place_of[block]) == count for block, count in (+holds).items())
        assert window.pool.num_free == 10 - len(+holds)


@pytest.mark.parametrize("window", [1, 2, 32, 33, 40, 4096])
def test_the_first_block_that_is_seen_has_the_oldest_token_of_the_window(window: int) -> None:
    blocks = WindowBlocks(window, 1, 1)
    for length in range(300):
        oldest = max(0, length - window + 1)  # the token at position `length` is the newest
        assert blocks.first_seen(length) == oldest // KV_BLOCK


@pytest.mark.parametrize("seed", range(3))
def test_states_are_found_by_the_longest_text_that_agrees(seed: int) -> None:
    rng, slots = random.Random(seed), Pool(12, "slots")
    checkpoints = Checkpoints(slots)
    known: dict[int, tuple[bytes, tuple[int, ...]]] = {}  # slot -> text, as far as it was not evicted
    for _ in range(400):
        parent, tokens = rng.choice([b"a", b"b"]), tuple(rng.choices(range(2), k=rng.randint(1, 5)))
        if rng.random() < 0.4:
            slot = slots.allocate()
            known.pop(slot, None)  # whose memory this was
            is_new = (parent, tokens) not in known.values()
            assert checkpoints.add(parent, tokens, slot) == is_new
            assert not checkpoints.add(b"c", tokens, slot) or not is_new
            if not is_new:
                checkpoints._lose(slot) if slot in checkpoints._by_slot else None
                slots.uncache(slot)
            slots.release(slot)
            if is_new:
                known[slot] = parent, tokens
        else:
            most = rng.randint(1, 5)
            fitting = [
                (len(text), slot)
                for slot, (name, text) in known.items()
                if name == parent and len(text) <= most and text == tokens[: len(text)]
            ]
            assert checkpoints.find(parent, tokens[:most]) == max(fitting, default=None)
        checkpoints.check_integrity()
        assert len(checkpoints) == len(known)
