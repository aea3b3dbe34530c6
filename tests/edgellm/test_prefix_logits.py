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
from edgellm.packed.read import open_packed
from tests.edgellm.prefix_requests import MODEL, changed
from tests.edgellm.test_equalities import TOKENS, kv_cache_dtype, runner

Run = tuple[Runner, KVCache]


@pytest.fixture(scope="module", params=["cpu", "naive"])
def run(
    request: pytest.FixtureRequest, library: jit.Library, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    packed = open_packed(pack_on_the_fly(tiny_gguf, tmp_path_factory.mktemp("prefix")))
    assert kv_cache_dtype(packed) == "bf16"
    with runner(library, packed) as (cpu, cache):
        if request.param == "cpu":
            yield cpu, cache
        else:
            yield NaiveBackend().open(packed, cache, context=512, max_rows=320, max_logit_rows=320), cache


def answer(run: Run, prefix: PrefixCache, tokens: list[int]) -> tuple[CacheReport, np.ndarray]:
    """Logits of a text's tokens that are not cached."""
    engine, _ = run
    sequence, report = prefix.begin(tokens)
    sequence.reserve(len(tokens))
    rest = tokens[sequence.length :]
    run_step(engine, [Rows(sequence, rest, range(len(rest)))])
    logits = engine.logits.copy()
    prefix.end(sequence, tokens)
    prefix.check_integrity()
    return report, logits


def test_logits_behind_a_cached_prefix_are_those_of_a_fresh_text(run: Run) -> None:
    prefix = PrefixCache(run[1], model=MODEL)
    edited = changed(TOKENS, 77)
    _, fresh = answer(run, prefix, TOKENS)
    prefix.forget()
    _, fresh_edited = answer(run, prefix, edited)
    prefix.forget()
    answer(run, prefix, TOKENS[:250])
    for tokens, whole, cached in ((TOKENS, fresh, 250), (edited, fresh_edited, 77), (TOKENS, fresh, 299)):
        report, logits = answer(run, prefix, tokens)
        assert report.from_memory == cached
        assert np.array_equal(logits, whole[cached:])
    prefix.forget()


def test_logits_after_a_restart_are_those_of_a_fresh_text(run: Run, tmp_path: Path) -> None:
    def store() -> BlockStore:
        return BlockStore(tmp_path, model=MODEL, block_bytes=run[1].layout.block_bytes, budget_bytes=100 << 20)

    with closing(store()) as blocks:
        prefix = PrefixCache(run[1], model=MODEL, store=blocks)
        _, fresh = answer(run, prefix, TOKENS)
        prefix.forget()
    run[1].block_view(0)[:] = 0
    with closing(store()) as blocks:
        prefix = PrefixCache(run[1], model=MODEL, store=blocks)
        report, logits = answer(run, prefix, TOKENS[:290])
        assert report == CacheReport(0, 289, "hit")
        assert np.array_equal(logits, fresh[289:290])
        prefix.forget()
