"""Explanations: what a model looks at, as maps with scores; methods, plans, durable rows."""
