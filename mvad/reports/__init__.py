"""x"""

from typing import Any


def report(out: str, **options: Any) -> Any: ...
