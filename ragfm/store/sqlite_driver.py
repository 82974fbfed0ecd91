"""The driver of SQLite: pysqlite3, or sqlean.py on Linux machines for which pysqlite3 has no wheels.

Both bring an SQLite of their own, because Python's is often built without loadable extensions.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

sqlite: Any = import_module("pysqlite3" if find_spec("pysqlite3") else "sqlean")
