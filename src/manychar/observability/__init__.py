"""What people and monitoring see of a run: progress, status, exporters, plots, dashboard."""
