"""The Transfer Engine: memory to memory between processes, by whatever path is best."""
