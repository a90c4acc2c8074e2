"""The project's own load generator: every row of the speed table, with floors of the same run."""
