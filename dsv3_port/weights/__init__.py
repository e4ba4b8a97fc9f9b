"""Weights: the published checkpoint format, the mapping to the model, the splitter and the loader."""
