"""The daemon's heart through thousands of crashes, and faults planted in it that the simulation has to find."""

from tests.simulation import worlds

CRASHES = 2_000
FIRST_SEED = 1


def test_no_crash_breaks_a_promise() -> None:
    ended = worlds(FIRST_SEED, CRASHES)
    print(f"seeds {FIRST_SEED} to {FIRST_SEED + ended['worlds'] - 1}: {dict(ended)}")
    assert ended["power"] + ended["kill"] >= CRASHES
    assert min(ended["power"], ended["kill"], ended["stop"], ended["broken disk"]) > 100
