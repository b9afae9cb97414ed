"""What is done to a store besides publishing: checks, garbage collection, going back, changes of keys."""
