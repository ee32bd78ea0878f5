"""Pure functions on rows: scores, intervals and paired tests. No torch, no files."""
