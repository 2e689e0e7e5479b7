"""HTML pages about runs and sweeps, written by `redi.pages.report`."""
