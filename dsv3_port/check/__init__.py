"""Is it the same: equivalence gates, comparison by stage, greedy text, a peer, mistakes on purpose."""
