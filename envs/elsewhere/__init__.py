"""Worlds that live elsewhere: simulators in an interpreter of their own, each in the environment that it needs.

`far/` is what runs over there, on Python 3.8 and later: server.py, which needs NumPy and msgpack, and one adapter for each
simulator. `far/requirements/` says what `make worlds NAME=...` installs for it.
"""

from envs.elsewhere.world import Elsewhere

__all__ = ["Elsewhere"]
