"""Graph types that run, and the demo."""
