"""Imported last by the process that local workers are forked from: it does once what each of them would have to do.

That is to load compiled functions, most of all, which takes a second.
"""

from __future__ import annotations

import contextlib
import json
import os

from placement.workers.base import find

CALLS = "PLACEMENT_TEMPLATE_CALLS"
"""The variable of the environment that says what to call: pairs of a function's name and its argument, in JSON."""

for _function, _argument in json.loads(os.environ.get(CALLS, "[]")):
    with contextlib.suppress(Exception):  # a worker that needs it calls it again, and says what is wrong
        find(_function, ())(_argument)
