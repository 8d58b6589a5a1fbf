"""Floor 3: a page to watch a run by. It observes, as any other peer; no browser meets the server.

The page is drawn by NiceGUI, the extra `manychar[dashboard]`; only page.py and web.py know that.
"""
