"""The model: in each file the upstream form of a component first, the ported form after
it, with one signature."""
