"""The hub: the control plane, a Faust application. Commands in, events out; nothing in the data path needs it."""
