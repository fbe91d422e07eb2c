"""GR-1: a causal transformer over language, state and images that predicts actions and the frames to come."""
