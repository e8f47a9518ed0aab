"""The Ray cluster: connecting to it, its nodes, and what they can hold."""
