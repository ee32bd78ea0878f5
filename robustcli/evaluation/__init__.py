"""The evaluation: plan what is missing, load and compute it, store durable rows."""
