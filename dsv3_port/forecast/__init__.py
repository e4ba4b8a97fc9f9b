"""What a machine that is not here would do: memory per card, the time of a step from kernels that
others measured, roofline; held against cited figures."""
