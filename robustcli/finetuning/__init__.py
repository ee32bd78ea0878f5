"""What fine-tuning adds to a training: a profile of gradients, what it freezes, what that saves."""
