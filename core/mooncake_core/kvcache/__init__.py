"""The KVCache as data: layouts, block keys, and which instance holds which block."""
