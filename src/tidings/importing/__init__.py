"""Histories of other systems, brought in with their own times, once however often they are run."""
