"""Fine-tuning: gradient profiles, rules of freezing, modes, what each costs and gives."""
