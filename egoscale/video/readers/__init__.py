"""One file a data set: where its videos lie and what is known about each."""
