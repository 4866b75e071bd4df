"""One YAML per cluster: typed, checked as a whole, every value with its origin."""
