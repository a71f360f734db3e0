"""What authors write: graph types, their hops, and what a hop is given."""
