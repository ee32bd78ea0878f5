"""The lock for code that changes state of the whole process while it runs."""

from __future__ import annotations

import threading

# The corruptions draw from numpy's global generator, which imgcorruptlike seeds and then puts back;
# PiecewiseAffine needs a warning filter, which belongs to the process until Python 3.14. Either is
# sound only while no second thread does the same.
ONE_AT_A_TIME = threading.Lock()
