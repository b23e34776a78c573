"""Grafana: the dashboard, how it is made, and its provisioning."""
