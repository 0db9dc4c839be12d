"""Forms of a model that run elsewhere, or run only the open filters."""
