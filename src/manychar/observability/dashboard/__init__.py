"""A page that shows a run, drawn by NiceGUI, the extra `manychar[dashboard]`."""
