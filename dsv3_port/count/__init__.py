"""How much work a model does: operators, bytes, FLOPs, host reads, collectives, captures. No clock."""
