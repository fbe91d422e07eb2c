"""F1 (arXiv 2509.06951): what is foreseen is the plan, and actions are what leads there."""
