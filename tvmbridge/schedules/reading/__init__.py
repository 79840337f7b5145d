"""What a kernel is, whatever it is to run on: a product, a sliding window, rows, pieces of a map."""
