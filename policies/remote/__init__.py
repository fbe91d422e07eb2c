"""A policy that runs somewhere else. It needs NumPy, websockets and msgpack here, and no torch."""

from policies.remote.policy import Remote

__all__ = ["Remote"]
