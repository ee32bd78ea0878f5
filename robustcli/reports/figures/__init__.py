"""The pictures of a report: each file draws one, from a table to a PNG."""
