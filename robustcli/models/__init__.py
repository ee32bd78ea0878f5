"""Networks, built by name. No files are read and nothing is printed here."""
