"""The ground floor: errors, names, seeds and durable writes. Imports no other room."""
