"""For plugin authors: contract suites, and implementations in memory that misbehave on purpose."""
