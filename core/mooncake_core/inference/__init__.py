"""Engines that compute, and the batching that feeds them."""
