"""What preference training is measured by."""
