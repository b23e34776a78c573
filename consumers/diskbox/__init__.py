"""The recovery side: recovery volumes, their projectors, views, fail-over tests and promote."""
