"""What is kept of functions of frozen objects: found once of the same objects, again of equal ones, and no more of it than is allowed."""

from __future__ import annotations

from rapid_dse.common.remembered import Remembered, remembered


def test_the_same_objects_are_asked_about_once_and_equal_ones_again() -> None:
    asked: list[tuple[int, ...]] = []

    @remembered(8)
    def doubled(values: tuple[int, ...]) -> list[int]:
        asked.append(values)
        return [2 * value for value in values]

    first, equal = tuple(range(1, 3)), tuple(range(1, 3))
    assert doubled(first) is doubled(first)
    assert doubled(equal) == doubled(first)
    assert asked == [first, equal]
    assert doubled(values=first) == [2, 4]
    assert len(asked) == 3


def test_no_more_is_kept_than_is_allowed_and_none_of_it_is_anothers() -> None:
    """Objects that are no longer kept may give their place in memory to others, which are asked about anew."""
    kept = Remembered(4)
    for number in range(1000):
        thing = [number]
        assert kept.once((thing, "first"), lambda thing=thing: thing[0]) == number  # type: ignore[misc]
        assert kept.once((thing, "first"), lambda: -1) == number
        assert len(kept.entries) <= 4
