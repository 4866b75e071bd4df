"""What arrives: traces of others, traces made by a seed, and what can be said of a trace."""
