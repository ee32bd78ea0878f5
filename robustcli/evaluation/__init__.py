"""Measuring: plan what is missing, compute it, keep durable rows, turn rows into numbers."""
