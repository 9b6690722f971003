"""Parts of the studies of workers: what their jobs do, and the page that holds what was seen."""
