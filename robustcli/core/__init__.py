"""Shared by all packages: errors, names, seeds, durable writes, run folders, ranks."""
