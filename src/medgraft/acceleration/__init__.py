"""What makes a run quicker without changing what it computes; each part can be switched off."""
