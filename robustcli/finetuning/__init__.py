"""Fine-tuning: gradient profiles, freezing rules, training modes, and their costs and scores."""
