"""A log that is followed over broken streams and rotation gives each line once, and holds none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from launcher.kuberay.seen_lines import NUM_LAST, SeenLines


def given(*connections: str) -> str:
    """What several connections give together, a line a word."""
    seen = SeenLines()
    return " ".join(line for words in connections for line in seen.new(words.split()))


@pytest.mark.parametrize(
    ("connections", "expected"),
    [
        (("a b", "a b c", "", "a", "a b c d"), "a b c d"),
        (("a a a", "a a a a b"), "a a a a b"),
        # Rotated: the new file goes on behind what was given,
        (("a b c", "d e"), "a b c d e"),
        # or begins with lines of it,
        (("a b c", "b c d", "b c d e"), "a b c d e"),
        (("a b c", "c"), "a b c"),
        # or only looks as if it did,
        (("a b c b", "c x"), "a b c b c x"),
        (("a x b", "x y"), "a x b x y"),
        # and again, with fewer lines than the one before.
        (("a b c d e f", "g h i", "g h i j", "k", "k l"), "a b c d e f g h i j k l"),
        (("a b", "b c d", "d e"), "a b c d e"),
    ],
)
def test_each_line_is_given_once(connections: tuple[str, ...], expected: str) -> None:
    assert given(*connections) == expected


def test_a_new_line_of_a_rotated_log_does_not_wait_for_another() -> None:
    seen = SeenLines()
    assert list(seen.new(["a", "b"])) == ["a", "b"]

    def slowly() -> Iterator[str]:
        yield "c"
        pytest.fail("nobody should have had to ask for more")

    assert next(seen.new(slowly())) == "c"


def test_a_log_far_longer_than_what_is_remembered() -> None:
    lines = [str(number) for number in range(3 * NUM_LAST)]
    seen = SeenLines()
    assert list(seen.new(lines[: 2 * NUM_LAST])) == lines[: 2 * NUM_LAST]
    later = lines[NUM_LAST + 7 :]
    assert list(seen.new(later)) == lines[2 * NUM_LAST :]
    assert list(seen.new([*later, "end"])) == ["end"]
