"""From results to pages: `build` makes report.json's content, everything else is drawn and written from it alone."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`from analysis import report` is the function, and this package itself once something has loaded it."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        from analysis.report.in_one_call import report

        return report(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
