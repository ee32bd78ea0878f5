"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# On a loaded machine drawing examples is slow, which says nothing about the code. All else stays as
# it is by default, on a CI server too (fixed examples there, new ones elsewhere).
settings.register_profile(
    "robust", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("robust")
