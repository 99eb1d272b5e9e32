"""Locks and connections after a fork.

A child has one thread, but the locks as they were: one that another thread of the parent held stays held for ever. A
connection is shared with the parent, so both would read parts of the same answers. The child makes new ones.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """Has locks or connections."""

    def _renew(self) -> None:
        """Drops connections without a word to the other side, and makes new locks."""
        ...


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_child(renewable: Renewable) -> None:
    """Calls `_renew` in each forked child, as long as the object lives."""
    _renewables.add(renewable)


def _renew() -> None:
    for renewable in list(_renewables):
        renewable._renew()


os.register_at_fork(after_in_child=_renew)
