"""The lock for code that changes state of the whole process while it runs."""

from __future__ import annotations

import threading

# The corruptions draw from numpy's global generator, which imgcorruptlike seeds and then puts back:
# sound only while no second thread does the same.
ONE_AT_A_TIME = threading.Lock()
