"""What trainings of each kind of model are scored by, as reports show it."""
