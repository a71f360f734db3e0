"""One migration: begin, run its hops, fail, recover, and the operators' verbs."""
