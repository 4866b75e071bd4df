"""One module per command; each has a click command called `command`, and is imported only when it is called."""
