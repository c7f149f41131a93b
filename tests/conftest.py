"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# No test asserts a time, and a machine may be busy. In continuous integration the default profile is hypothesis' own.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")
