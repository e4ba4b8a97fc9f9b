"""What this machine has and lacks: Python, torch, Ascend's software, a classroom."""
