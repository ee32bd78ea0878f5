"""What every room uses: errors, names, seeds, durable writes, run folders, ranks."""
