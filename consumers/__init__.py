"""Stream processors: the hub, and the diskbox with its projectors and views."""
