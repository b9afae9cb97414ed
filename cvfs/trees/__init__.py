"""Whole trees of a repository without a mount: walked, copied out, brought into the cache."""
