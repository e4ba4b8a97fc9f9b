"""Running a model: settings, tokenizer, graph modes, and the loop from prompt to text."""
