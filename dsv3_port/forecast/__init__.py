"""What to expect of cards that are not here: memory, roofline, kernels that others measured."""
