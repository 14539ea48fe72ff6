"""`trainhop demo`: a server, a small model, and workers that are killed during training."""
