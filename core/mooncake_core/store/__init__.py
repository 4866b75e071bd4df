"""The pool: a directory in each node's segment, an index in the master, and the client between them."""
