"""The thread team: a walker of step programs, the barrier between dependent operations, and the wait for work."""

from edgellm.kernels.ops import BARRIER, BARRIER_OF_MANY, HEAD, OPERATION_WORDS, TEAM
from edgellm.kernels.ops import STEP as STEP_RECORD
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import (
    call_4,
    cycles,
    fetch_add,
    load_acquire,
    load_i64,
    pause,
    store_i64,
    store_release,
    yield_thread,
)

OPERATION_BYTES = 8 * OPERATION_WORDS
assert HEAD == ("kernel", "barrier")
EPOCH, ARRIVALS, GENERATION = TEAM.epoch, TEAM.arrivals, TEAM.generation
PROGRAM, COUNT, STEP, THREADS, SPINS, STOP = TEAM.program, TEAM.count, TEAM.step, TEAM.threads, TEAM.spins, TEAM.stop
TIMES, FEW = TEAM.times, STEP_RECORD.few


@kernel
def barrier(team: int, threads: int, spins: int) -> None:
    """Wait until all threads are here: spin, then let others run."""
    if threads == 1:
        return
    generation = load_acquire(team + GENERATION)
    if fetch_add(team + ARRIVALS, 1) == threads - 1:
        store_i64(team + ARRIVALS, 0)
        store_release(team + GENERATION, generation + 1)
        return
    waited = 0
    while load_acquire(team + GENERATION) == generation:
        if waited < spins:
            pause()
            waited += 1
        else:
            yield_thread()


@kernel
def walk(team: int, thread: int) -> None:
    """Run the team's program as one of its threads; the first notes when each operation began, where that is wanted."""
    program, count, step = load_i64(team + PROGRAM), load_i64(team + COUNT), load_i64(team + STEP)
    threads, spins, times = load_i64(team + THREADS), load_i64(team + SPINS), load_i64(team + TIMES)
    if thread:
        times = 0
    for i in range(count):
        op = program + i * OPERATION_BYTES
        wait = load_i64(op + 8)
        if wait == BARRIER or (wait == BARRIER_OF_MANY and not load_i64(step + FEW)):
            barrier(team, threads, spins)
        if times:
            store_i64(times + i * 8, cycles())
        call_4(load_i64(op), op, step, thread, threads)
    barrier(team, threads, spins)
    if times:
        store_i64(times + count * 8, cycles())


@kernel
def lead(team: int, unused_1: int, unused_2: int, unused_3: int) -> None:
    """Thread 0: announce the program in the team's record to the others, and take part."""
    store_release(team + EPOCH, load_i64(team + EPOCH) + 1)
    walk(team, 0)


@kernel
def follow(team: int, thread: int, seen: int, patience: int) -> None:
    """Another thread: run every program announced after the one numbered at `seen`; leave after a while without.

    `seen` is the address of the number of the last program run. `patience` counts looks for work in vain. They are busy
    ones: a thread that gives way between two tokens waits a whole time slice for a neighbour on a loaded machine.
    """
    looks = 0
    while looks < patience and not load_acquire(team + STOP):
        epoch = load_acquire(team + EPOCH)
        if epoch != load_i64(seen):
            store_i64(seen, epoch)
            walk(team, thread)
            looks = 0
        else:
            looks += 1
            pause()
