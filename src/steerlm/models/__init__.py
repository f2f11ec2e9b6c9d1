"""Loading and saving: base models, the attribute model, the policy, and what a model directory says of itself."""
