"""The Conductor: decides where requests run (FAST'25, section 4). Pure: no I/O, no clock, no randomness of its own."""
