"""The daemon's heart through thousands of crashes, and faults planted in it that the simulation has to find."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from eventlog.values import MicroUSD, digest
from tests.simulation import (
    DEEDS,
    FAULTS,
    OPERATIONS,
    PAUSES,
    PEACE,
    Fault,
    Life,
    Step,
    World,
    lived_through,
    small_world,
    worlds,
)
from tests.simulation_api import KINDS, Answer, Sent
from tests.simulation_plants import PLANTS
from tests.simulation_witness import Violation, Witness

CRASHES = 500  # in each of four parts, for as many processors
FIRST_SEEDS = (1, 10_001, 20_001, 30_001)
CRASHES_TO_FIND = 2_000  # each was found by the 120th; the bound is for code that takes other turns


@pytest.mark.parametrize("first_seed", FIRST_SEEDS)
def test_no_crash_breaks_a_promise(first_seed: int) -> None:
    ended = worlds(first_seed, CRASHES)
    print(f"seeds {first_seed} to {first_seed + ended['worlds'] - 1}: {dict(ended)}")
    assert ended["power"] + ended["kill"] >= CRASHES
    assert min(ended["power"], ended["kill"], ended["stop"], ended["broken disk"]) > 30


@pytest.mark.parametrize("name", PLANTS)
def test_a_fault_that_is_planted_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, sentence = PLANTS[name]
    plant(monkeypatch)
    with pytest.raises(Violation, match=sentence):
        worlds(FIRST_SEEDS[0], CRASHES_TO_FIND)


def test_the_same_seed_is_the_same_world() -> None:
    one, other = lived_through(5), lived_through(5)
    assert one.ended == other.ended and [sent.id for sent in one.witness.api.sent] == [sent.id for sent in other.witness.api.sent]
    assert [job.stage for job in one.witness.over] == [job.stage for job in other.witness.over] != []


class Heart(RuleBasedStateMachine):
    """The same world with every step drawn by Hypothesis, so that what it finds is told in as few as possible."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.steps: tuple[Step, ...] = ()
        self.faults: tuple[Fault, ...] = ()

    @rule(deed=st.sampled_from(list(DEEDS)), choice=st.integers(0, 30), pause=st.sampled_from(PAUSES))
    def client_asks(self, deed: str, choice: int, pause: float) -> None:
        self.steps += (Step(deed, choice, pause),)

    @precondition(lambda self: len(self.faults) < 2)
    @rule(operation=st.integers(1, OPERATIONS), number=st.sampled_from(FAULTS), forever=st.booleans())
    def disk_is_going_to_fail(self, operation: int, number: int, forever: bool) -> None:
        self.faults += (Fault(operation, number, forever),)

    @rule(
        kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3),
        end=st.sampled_from(("power", "kill", "stop")),
        ends_at=st.integers(1, OPERATIONS),
        after=st.booleans(),
        found=st.tuples(st.sampled_from(("last", "older", "none")), st.booleans(), st.integers(0, 2**32)),
    )
    def daemon_lives(self, kinds: list[str], end: str, ends_at: int, after: bool, found: tuple[str, bool, int]) -> None:
        answers = tuple(Answer(kind, float(number)) for number, kind in enumerate(kinds))
        self.live(Life(self.steps, answers, self.faults, end, ends_at, after, *found))
        self.steps, self.faults = (), ()

    def teardown(self) -> None:
        self.live(PEACE)

    def live(self, life: Life) -> None:
        with small_world():
            self.world.live(life)


def test_no_sequence_of_steps_breaks_a_promise() -> None:
    run_state_machine_as_test(Heart, settings=settings(max_examples=60, stateful_step_count=25, deadline=None, print_blob=True))


def sent(name: str, billed: int = 5) -> Sent:
    return Sent(name, digest(b""), MicroUSD(billed))


def test_a_request_that_leaves_with_nothing_reserved_is_seen() -> None:
    with pytest.raises(Violation, match="imaged-a-1 leaves with 0 reserved, and 5 may be billed"):
        Witness().look_at_request(sent("imaged-a-1"))


def test_a_request_that_leaves_twice_is_seen() -> None:
    witness = Witness()
    witness.api.sent.append(sent("imaged-a-1", billed=0))
    with pytest.raises(Violation, match="sent twice"):
        witness.look_at_request(sent("imaged-a-1", billed=0))
    witness.look_at_request(sent("imaged-a-2", billed=0))
