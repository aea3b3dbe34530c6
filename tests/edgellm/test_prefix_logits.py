"""Logits behind a cached prefix are those of a fresh text, bit by bit."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.base import Rows, Runner, run_step
from edgellm.backends.naive.backend import NaiveBackend
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.kernels import jit
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.kv import KVCache
from edgellm.memory.prefix import CacheReport, PrefixCache
from edgellm.memory.store import HostStore
from edgellm.packed.read import open_packed
from tests.edgellm.families.tiny_hybrid import make_hybrid_gguf
from tests.edgellm.prefix_requests import MODEL, changed
from tests.edgellm.test_equalities import TOKENS, kv_cache_dtype, runner

Run = tuple[Runner, KVCache]


@pytest.fixture(scope="module", params=["llama", "hybrid"])
def path(request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    hybrid = tmp_path_factory.mktemp("prefix") / "hybrid.gguf"
    return tiny_gguf if request.param == "llama" else make_hybrid_gguf(hybrid)


@pytest.fixture(scope="module", params=["cpu", "naive"])
def run(
    request: pytest.FixtureRequest, library: jit.Library, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    packed = open_packed(pack_on_the_fly(path, tmp_path_factory.mktemp("prefix")))
    assert kv_cache_dtype(packed) == "bf16"
    with runner(library, packed) as (cpu, cache):
        if request.param == "cpu":
            yield cpu, cache
        else:
            yield NaiveBackend().open(packed, cache, context=512, max_rows=320, max_logit_rows=320), cache


def answer(run: Run, prefix: PrefixCache, tokens: list[int]) -> tuple[CacheReport, np.ndarray]:
    """Logits of a text's tokens that are not cached; its last token is a step of its own, as the engine has it."""
    engine, _ = run
    sequence, report = prefix.match_prefix(tokens)
    parts = []
    for end in (len(tokens) - 1, len(tokens)):
        rest = tokens[sequence.length : end]
        if rest:
            sequence.reserve(end)
            run_step(engine, [Rows(sequence, rest, range(len(rest)))])
            parts.append(engine.logits.copy())
            prefix.cache_tokens(sequence, tokens[:end])
    prefix.free(sequence, tokens)
    prefix.check_integrity()
    return report, np.concatenate(parts)


def test_logits_behind_a_cached_prefix_are_those_of_a_fresh_text(run: Run) -> None:
    """An edited text resumes where it was edited, or, with recurrent states, where one before was kept: nowhere."""
    prefix = PrefixCache(run[1], model=MODEL)
    edited = changed(TOKENS, 77)
    _, fresh = answer(run, prefix, TOKENS)
    prefix.forget()
    _, fresh_edited = answer(run, prefix, edited)
    prefix.forget()
    answer(run, prefix, TOKENS[:250])
    cached_of_edited = 0 if run[1].is_recurrent else 77
    for tokens, whole, cached in ((TOKENS, fresh, 250), (edited, fresh_edited, cached_of_edited), (TOKENS, fresh, 299)):
        report, logits = answer(run, prefix, tokens)
        assert report.from_memory == cached
        assert np.array_equal(logits, whole[cached:])
    prefix.forget()


def test_logits_after_a_restart_are_those_of_a_fresh_text(run: Run, tmp_path: Path) -> None:
    layout = run[1].layout

    def store() -> BlockStore:
        return BlockStore(
            tmp_path, model=MODEL, block_bytes=layout.block_bytes, budget_bytes=100 << 20,
            state_bytes=layout.slots.nbytes if layout.slots else None,
        )  # fmt: skip

    with closing(store()) as blocks:
        prefix = PrefixCache(run[1], model=MODEL, store=blocks)
        _, fresh = answer(run, prefix, TOKENS)
        answer(run, prefix, TOKENS[:290])
        prefix.forget()
    spoil(run[1])
    with closing(store()) as blocks:
        prefix = PrefixCache(run[1], model=MODEL, store=blocks)
        report, logits = answer(run, prefix, TOKENS[:290])
        assert report == CacheReport(0, 289, "hit")
        assert np.array_equal(logits, fresh[289:290])
        report, logits = answer(run, prefix, TOKENS)
        assert report == CacheReport(288, 11, "hit")
        assert np.array_equal(logits, fresh[299:])
        prefix.forget()


def spoil(cache: KVCache) -> None:
    """Other bytes in all memory that nobody holds."""
    assert isinstance(cache.store, HostStore)
    for arena in [*cache.store.arenas, cache.store.slots[1:]]:
        arena[:] = 99


def test_logits_after_a_state_kept_within_a_known_text_are_those_of_a_fresh_text(
    run: Run,
) -> None:
    """Of texts that share a beginning, the second resumes where the first had a state; blocks go on being shared."""
    engine, cache = run
    other = [*TOKENS[:150], *TOKENS[:60]]
    prefix = PrefixCache(cache, model=MODEL)
    _, fresh = answer(run, prefix, other)
    prefix.forget()
    prefix = PrefixCache(cache, model=MODEL)  # one that evicted nothing
    sequence, _ = prefix.match_prefix(TOKENS)
    for end in (100, 140, 200, 300):
        sequence.reserve(end)
        run_step(engine, [Rows(sequence, TOKENS[sequence.length : end])])
        prefix.cache_tokens(sequence, TOKENS[:end])
    expected = 140 if cache.is_recurrent else 150
    report, logits = answer(run, prefix, other)
    assert (report.from_memory, report.reason) == (expected, "no state" if cache.is_recurrent else "differs")
    assert np.array_equal(logits, fresh[expected:])
    prefix.free(sequence, TOKENS)
    prefix.forget()
    cache.check_nothing_is_held()
