"""The foreign project's own core."""
