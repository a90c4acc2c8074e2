"""Moving a running service from one store to another, and back."""
