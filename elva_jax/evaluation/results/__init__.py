"""Results of benchmarks for people: tables, files, a page, a plot, intervals and comparisons."""
