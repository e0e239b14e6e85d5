"""HTML pages about runs, sweeps and data sets; templates/ has their HTML and CSS."""
