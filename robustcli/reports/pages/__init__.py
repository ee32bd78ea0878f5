"""The kinds of reports: each file turns what a run left into a table and a document."""
