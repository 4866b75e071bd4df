"""The control plane: typed messages over pyzmq, with deadlines, a version handshake and authentication."""
