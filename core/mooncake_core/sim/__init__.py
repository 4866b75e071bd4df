"""The discrete-event cluster simulator: the live Conductor over modelled instances, NICs and memory."""
