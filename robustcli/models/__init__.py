"""Networks, built by name. They read no files and print nothing."""
