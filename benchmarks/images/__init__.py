"""Jobs on machines like Kaggle's and Colab's, measured: `python -m benchmarks.images --json`."""
