"""The report: one self-contained page about a placement, which asks nothing of any server.

`content` says what a page shows, `charts` draws it with Bokeh, `treemap` lays the model out, and `html` puts it
together. Bokeh comes with the extra `report`.
"""
