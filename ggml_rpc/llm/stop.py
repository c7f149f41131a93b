"""Stop strings in a stream of text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class StopStrings:
    """Pass text on until a stop string appears, holding back what could be the beginning of one.

    The stop string that is complete first ends the text; of several complete at the same character the longest. Neither
    it nor what follows it is passed on. What is passed on in all does not depend on how the text was cut into pieces.
    The work is linear in the text: each piece runs through an automaton of all stop strings (Aho and Corasick, 1975),
    whose state is the longest end of the text that begins a stop string; a piece costs a copy of what is held back too.

    Parameters
    ----------
    stops : iterable of str
        The stop strings; none passes everything on.

    Attributes
    ----------
    found : str or None
        The stop string that ended the text.

    Raises
    ------
    ValueError
        If a stop string is empty.
    TypeError
        If `stops` is one string, or holds what is none.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        if isinstance(stops, str):
            raise TypeError("stops must be a list of strings, not one string")
        # A state is a node of the tree of all stop strings; 0 is the root.
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._ends: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._link()
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        self._state = 0
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """Take a piece of text.

        Returns
        -------
        emit : str
            What can be passed on now.
        stopped : bool
            Whether a stop string has appeared; all later pieces give ``("", True)``.
        """
        if self.found is not None:
            return "", True
        state = self._state
        for at, char in enumerate(text):
            following = self._next[state]
            while state and char not in following:
                state = self._fail[state]
                following = self._next[state]
            state = following.get(char, 0)
            found = self._ends[state]
            if found is not None:
                self.found = found
                whole = self._held + text[: at + 1]
                self._held = ""
                return whole[: len(whole) - len(found)], True
        self._state = state
        whole = self._held + text
        cut = len(whole) - self._depth[state]
        self._held = whole[cut:]
        return whole[:cut], False

    def flush(self) -> str:
        """Return what is held back, at the end of the text, and forget it."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _insert(self, stop: str) -> None:
        """Add a stop string to the tree."""
        if not isinstance(stop, str):
            raise TypeError(f"a stop string must be a string, not {stop!r}")
        if not stop:
            raise ValueError("a stop string must not be empty")
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._ends.append(None)
            state = self._next[state][char]
        self._ends[state] = stop

    def _link(self) -> None:
        """Link each state to the longest shorter end of its text that is a state too."""
        self._fail = [0] * len(self._next)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for char, child in self._next[state].items():
                fail = self._fail[state]
                while fail and char not in self._next[fail]:
                    fail = self._fail[fail]
                self._fail[child] = self._next[fail].get(char, 0)
                waiting.append(child)
            # The link's own end is shorter, so a stop string that ends here itself goes first.
            if self._ends[state] is None:
                self._ends[state] = self._ends[self._fail[state]]
