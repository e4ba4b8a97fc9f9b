"""How fast: paired measurements, their records, the ladder, sweeps and limits. Draws nothing."""
