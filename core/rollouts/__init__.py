"""Rollouts: one run that moves many graphs of a type to one version, in stages, and stops by itself."""
