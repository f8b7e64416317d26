"""The disk fails: whichever call of whichever act, in whichever way, nothing is half done, and all works on afterwards."""

import errno
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults import injection
from tests.faults.injection import KINDS, MANNERS, Fault, Manner
from tests.faults.script import SCRIPT
from tests.faults.shortage import SHORTAGES
from tests.faults.trial import Trial, trial

EVERY = 80
"""By default so many positions are passed over for one that is tried, at random. Torture tries them all."""

MOST = 400
"""So many of a kind are tried where there are more: in an import on a SQLite that keeps its temporary files on the disk."""

pytestmark = pytest.mark.skipif(injection.missing() is not None, reason=str(injection.missing()))


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    directory = tmp_path_factory.mktemp("faults")
    with trial(injection.built(directory), directory) as begun:
        yield begun


def positions(calls: int, every: int, chance: random.Random) -> Iterator[int]:
    """Which calls are to fail: all, and some more in case that there are more this time; or one of `every`."""
    if calls > MOST:
        return (nth for nth in sorted(chance.sample(range(1, calls + 1), MOST)) if chance.randrange(every) == 0)
    return (nth for nth in range(1, calls + (20 if every == 1 else 1)) if chance.randrange(every) == 0)


EVERY_POSITION = pytest.mark.parametrize(
    "every", [EVERY, pytest.param(1, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])]
)
EVERY_STEP = pytest.mark.parametrize(
    "number", [pytest.param(number, id=step.name) for number, step in enumerate(SCRIPT) if not step.prepares]
)


@pytest.fixture
def chance() -> random.Random:
    """A fresh seed each time; pytest shows it when the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


@EVERY_STEP
@EVERY_POSITION
def test_whichever_call_fails_nothing_is_half_done_and_all_works_on(
    tries: Trial, number: int, every: int, chance: random.Random
) -> None:
    tried: Counter[str] = Counter()
    wrong: list[str] = []
    for manner in MANNERS:
        for nth in positions(tries.course(number).calls[manner.kind], every, chance):
            fired, what = tries.fired(number, Fault(manner, nth))
            wrong += what
            if not fired:  # this time there were fewer calls
                break
            tried[str(manner)] += 1
    print(f"{SCRIPT[number].name}: {tried.total()} positions {dict(tried)}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


@EVERY_STEP
@EVERY_POSITION
def test_whatever_a_process_is_short_of_nothing_is_half_done_and_all_works_on(
    tries: Trial, number: int, every: int, chance: random.Random
) -> None:
    tried: Counter[str] = Counter()
    wrong: list[str] = []
    for shortage in SHORTAGES:
        if shortage.kind == "memory" and SCRIPT[number].starts_threads:
            continue
        if chance.randrange(every) == 0:
            fired, what = tries.fired(number, shortage)
            wrong += what
            tried[f"{shortage.kind}, {'met' if fired else 'not met'}"] += 1
    print(f"{SCRIPT[number].name}: {tried.total()} shortages {dict(tried)}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


def test_the_script_makes_every_kind_of_call(tries: Trial) -> None:
    made = {step.name: tries.course(number).calls for number, step in enumerate(SCRIPT) if step.name in ("create", "prune")}
    met = {kind for calls in made.values() for kind, count in calls.items() if count}
    assert met == set(KINDS) - {"rename"}  # which happens where a file cannot be linked


def test_an_append_that_is_to_survive_a_power_cut_is_synced(tries: Trial) -> None:
    number = next(number for number, step in enumerate(SCRIPT) if step.name == "append")
    fired, wrong = tries.fired(number, Fault(Manner("sync", errno.EIO, for_ever=True), 1))
    assert fired
    assert wrong == []
