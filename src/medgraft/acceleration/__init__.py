"""Faster computations of what the models compute; MEDGRAFT_ACCELERATION=none turns them off."""
