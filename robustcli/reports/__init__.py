"""Reports: rows and records become tables, figures, report.md, report.html; no torch."""
