"""`prefloop engine-host`: one pod's engine for a whole model, beside other pods that do the same."""
