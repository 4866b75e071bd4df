"""Tiers: where a node keeps objects that its DRAM has no room for (SSD, object storage)."""
