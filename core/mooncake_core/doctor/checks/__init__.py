"""The checks of what every cluster needs; those of a transport or a tier are in its own package."""
