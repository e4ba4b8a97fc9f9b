"""What a machine that is not here would do: memory per card, roofline, held against cited figures."""
