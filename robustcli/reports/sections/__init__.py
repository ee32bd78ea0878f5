"""The parts of a report, in words and tables: each file turns findings into blocks."""
