"""What `mooncake bench` runs."""
