"""Verification: a stored run is checked against its data, and a sample of it is recomputed."""
