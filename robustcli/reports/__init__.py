"""Showing: rows become tables, pictures, `report.md` and `report.html`. Reads records only."""
