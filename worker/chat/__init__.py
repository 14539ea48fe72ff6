"""Answers of an adapter and of its base model, side by side, from one loaded model in a process of its own."""
