# MuJoCo's bindings are compiled and come without type information: pyright takes every name in them as given.
from typing import Any

def __getattr__(name: str) -> Any: ...
