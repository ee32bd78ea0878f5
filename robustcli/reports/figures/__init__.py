"""The figures of a report: a file draws those of one kind of report, from tables to PNG files."""
