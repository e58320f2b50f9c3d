"""What the worker reports about itself."""
