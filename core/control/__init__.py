"""Commands and events: the log that the control plane is a fold of."""
