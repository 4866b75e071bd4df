"""The master's HTTP port, for operators and for clients made for upstream's store; its routes and texts are upstream's."""
