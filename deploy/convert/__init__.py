"""One converter a runtime: the file it wants, built on the host, each in a process of its own."""
