"""What is kept on disk: the data folder, and a model's checkpoints in it."""
