"""The comparisons and studies; each module's `run(plan)` yields Markdown."""
