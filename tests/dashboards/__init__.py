"""The dashboards before a real cluster and a real Prometheus: `make dashboards`."""
