"""Scores, intervals and paired tests: pure functions on rows, without torch and files."""
