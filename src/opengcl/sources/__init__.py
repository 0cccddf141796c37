"""Where ranked data come from: readers of what shops and benchmarks have, and the way into a data set's folder."""
