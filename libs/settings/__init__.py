"""What settings of several services have in common."""
