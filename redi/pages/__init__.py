"""The parts of the HTML pages that `redi.pages.report` writes."""
