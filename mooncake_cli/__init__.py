"""The `mooncake` command: arguments in, text or JSON out. What it does is in mooncake_core."""
