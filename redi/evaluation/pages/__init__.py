"""The parts of the HTML pages that `redi.evaluation.report` writes."""
