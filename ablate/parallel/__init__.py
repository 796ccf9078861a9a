"""Many ranks: the mesh, stages of a model, the execution of schedules, the Strategy, checkpoints without a layout."""
