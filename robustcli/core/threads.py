"""How the threads of numerical libraries wait for each other."""

from __future__ import annotations

import os

# Turns of a waiting loop. `benchmarks/sharing.py` measured on two cores: alone as fast as libgomp's
# own 300,000, beside one and two busy processes in 0.6 and 0.5 of its time; 20,000 gain nothing
# beside one, and no turns at all (`OMP_WAIT_POLICY=passive`) cost 40 % alone.
_SPIN = "1000"


def wait_briefly() -> None:
    """Lets threads of OpenMP sleep soon when they wait, instead of spinning for milliseconds.

    Beside another program a thread waits at each loop's end for one that is not running; spinning
    then takes the very time that the other needs. What a user has set stays. It counts only before
    the library is loaded (GNU's libgomp, with which torch comes on Linux, reads it then).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)
